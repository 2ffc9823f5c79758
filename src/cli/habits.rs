//! What people type who come from llama.cpp: options of its programs that hotset does not have, each answered with one
//! sentence that says what to do instead. Options that hotset has under other names are aliases, where they are defined.

use std::ffi::OsString;

const NO_GPU: &str = "hotset has no GPU code yet: everything runs on the CPU, so leave it out";
const NO_CHAT: &str =
    "this verb continues one prompt and ends: hotset chat is a conversation, with --system and --chat-template FILE";
const NO_DOWNLOAD: &str = "hotset does not download models: give it a GGUF file";
const NO_SUCH_SAMPLER: &str =
    "hotset samples with --temp, --top-k, --top-p, --min-p and penalties (see --help) only; there is no such option";
const FROM_THE_FILE: &str = "rotary position settings come from the model's file; there is no such option";
const NO_ADAPTERS: &str = "hotset runs models without adapters; there is no such option";
const PRINTED: &str = "results go to standard output (> FILE keeps them); for JSON use --json";

/// Options of llama.cpp, and what to say of them.
const FOREIGN: &[(&[&str], &str)] = &[
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], NO_GPU),
    (&["-mg", "--main-gpu", "-sm", "--split-mode", "-ts", "--tensor-split", "-dev", "--device"], NO_GPU),
    (&["-nkvo", "--no-kv-offload", "-kvo", "--kv-offload", "-ot", "--override-tensor"], NO_GPU),
    (
        &["-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"],
        "experts always run on the CPU here: --memory says how much of them stays in memory",
    ),
    (&["-i", "--interactive", "-if", "--interactive-first", "-cnv", "--conversation"], NO_CHAT),
    (&["-mli", "--multiline-input", "-st", "--single-turn", "-sys", "--system-prompt", "-sysf"], NO_CHAT),
    (&["--system-prompt-file", "--chat-template", "--chat-template-file", "--jinja", "--no-jinja"], NO_CHAT),
    (&["--reverse-prompt", "--in-prefix", "--in-suffix", "--in-prefix-bos"], NO_CHAT),
    (
        &["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"],
        "keys and values have one type here: use --kv f16, --kv f32 or --kv q8_0",
    ),
    (&["-fa", "--flash-attn"], "attention never stores the whole score matrix here, so leave it out"),
    (&["--mlock"], "hotset does not lock memory: --memory sets how much it takes, all of it at the start"),
    (&["--no-mmap"], "hotset maps the model's file only with --io mapped, so leave it out"),
    (&["--mmap", "-mmp"], "use --io mapped"),
    (&["-ub", "--ubatch-size"], "use --batch (-b), the tokens of a prompt that run together"),
    (&["-tb", "--threads-batch"], "prompts run on the same threads: use --threads (-t)"),
    (&["--numa", "--poll", "--prio", "-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict"], THREADS),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"], NO_DOWNLOAD),
    (
        &["--keep", "--context-shift", "--no-context-shift"],
        "a full context ends the text here; --ctx (-c) sets its size",
    ),
    (&["--mirostat", "--mirostat-lr", "--mirostat-ent", "--typical", "--typical-p", "--samplers"], NO_SUCH_SAMPLER),
    (&["--dynatemp-range", "--dynatemp-exp"], NO_SUCH_SAMPLER),
    (&["--xtc-probability", "--xtc-threshold", "--dry-multiplier", "--dry-base", "--top-nsigma"], NO_SUCH_SAMPLER),
    (&["--grammar", "--grammar-file"], "the only grammars here are JSON schemas: use hotset run --json-schema"),
    (&["-j", "-jf", "--json-schema-file"], "use hotset run --json-schema, with the schema itself or its file"),
    (&["-l"], "use hotset run --logit-bias TOKEN=BIAS"),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], FROM_THE_FILE),
    (&["--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor"], FROM_THE_FILE),
    (&["--lora", "--lora-scaled", "--control-vector", "--mmproj"], NO_ADAPTERS),
    (&["-np", "--parallel"], "one text at a time here: hotset serve answers several requests at once"),
    (&["-md", "--model-draft", "--draft", "--draft-max"], "hotset has no draft models yet; there is no such option"),
];

const THREADS: &str =
    "threads take the cores that the affinity mask allows (taskset sets it); --threads (-t) says how many";

/// Options that ask for what hotset does anyway.
const AGREED: &[&str] = &["-no-cnv", "--no-conversation", "--no-escape", "--no-warmup"];

/// Those for a conversation that the verbs which have one take, or agree to.
const OF_CHAT: &[&str] = &["--system-prompt", "--chat-template", "--chat-template-file"];
const AGREED_BY_CHAT: &[&str] = &["-cnv", "--conversation", "-i", "--interactive", "--jinja"];

/// Verbs that are conversations.
const TALKING: &[&str] = &["chat", "serve"];

/// Verbs that take a model as an argument only.
const POSITIONAL: &[&str] = &["inspect", "logits", "plan", "repack", "tokenize", "trace"];

/// Verbs whose results go to standard output.
const PRINTING: &[&str] = &["bench", "inspect", "perplexity", "plan", "report", "simulate", "tokenize"];

/// The arguments (the program's name first) as clap is to read them, or what to say of one that comes from elsewhere.
pub fn translated(args: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let verb = args.get(1).and_then(|verb| verb.to_str()).unwrap_or_default().to_owned();
    let (mut kept, mut rest) = (Vec::with_capacity(args.len()), args.into_iter());
    kept.extend(rest.by_ref().take(2));
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        let (name, attached) = text.split_once('=').map_or((&*text, None), |(name, value)| (name, Some(value)));
        match name {
            "--" => {
                kept.push(arg);
                kept.extend(rest);
                break;
            }
            // A text may begin as an option does.
            "-p" | "--prompt" if attached.is_none() => {
                kept.push(arg);
                kept.extend(rest.next());
            }
            "-m" | "--model" if POSITIONAL.contains(&verb.as_str()) => {
                return Err(format!("{name}: the model file stands without an option: hotset {verb} FILE"));
            }
            "-o" | "--output" if PRINTING.contains(&verb.as_str()) => return Err(format!("{name}: {PRINTED}")),
            name if AGREED.contains(&name) => {}
            "-np" if verb == "serve" && attached.is_none() => kept.push("--parallel".into()),
            "--parallel" if verb == "serve" => kept.push(arg),
            name if OF_CHAT.contains(&name) && TALKING.contains(&verb.as_str()) => kept.push(arg),
            name if AGREED_BY_CHAT.contains(&name) && TALKING.contains(&verb.as_str()) => {}
            name => {
                let says = FOREIGN.iter().find(|(names, _)| names.contains(&name)).map(|(_, says)| *says);
                match says {
                    // What hotset does.
                    Some(NO_GPU) if name.ends_with("gpu-layers") || name == "-ngl" => {
                        let layers = attached.map(OsString::from).or_else(|| rest.next());
                        if layers.is_none_or(|n| n != "0") {
                            return Err(format!("{name}: {NO_GPU}"));
                        }
                    }
                    Some(says) => return Err(format!("{name}: {says}")),
                    None => kept.push(arg),
                }
            }
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &str) -> Result<String, String> {
        let args = args.split(' ').map(OsString::from).collect();
        translated(args).map(|args| args.join(" ".as_ref()).into_string().unwrap())
    }

    #[test]
    fn what_hotset_lacks_is_named_and_what_it_does_anyway_is_dropped() {
        for (names, says) in FOREIGN {
            for name in *names {
                assert_eq!(of(&format!("hotset run m.gguf {name} 7")), Err(format!("{name}: {says}")));
            }
        }
        assert_eq!(of("hotset run -m m.gguf -no-cnv -ngl 0 --no-warmup -n 5"), Ok("hotset run -m m.gguf -n 5".into()));
        assert_eq!(of("hotset run --n-gpu-layers=0 x"), Ok("hotset run x".into()));
        assert!(of("hotset run --n-gpu-layers=9 x").is_err() && of("hotset run -ngl").is_err());
        let chat = "hotset chat m.gguf --chat-template t.jinja --system-prompt x";
        assert_eq!(of(&format!("{chat} -cnv --jinja")), Ok(chat.into()));
        assert_eq!(of("hotset serve -np 4"), Ok("hotset serve --parallel 4".into()));
        assert_eq!(of("hotset serve --parallel=4"), Ok("hotset serve --parallel=4".into()));
        assert!(of("hotset run --chat-template t.jinja").unwrap_err().contains("hotset chat"));
        assert!(of("hotset bench -o json").unwrap_err().contains("--json"));
        assert!(of("hotset tokenize -m m.gguf").unwrap_err().contains("hotset tokenize FILE"));
    }

    #[test]
    fn texts_are_no_options() {
        for same in ["hotset run -p -ngl", "hotset run m.gguf -- -i", "hotset trace m.gguf -o out", "hotset"] {
            assert_eq!(of(same), Ok(same.into()));
        }
    }
}
