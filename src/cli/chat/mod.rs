//! `hotset chat`: a conversation.

mod command;
mod lines;

use std::{path::Path, process::ExitCode};

use hotset::{
    Error, Result,
    backend::cpu::Cpu,
    chat::{Delta, Message, Parser, Role, Settings, Tools},
    converse::Converser,
    generate::{Answered, Event, Finish, KeptSession, Rules},
    human_bytes, input,
    new_file::NewFile,
    sampler::Sampler,
    session::Session,
};

use self::{
    command::{HELP, Line},
    lines::{Lines, Next},
};
use super::{
    Ended, Stop,
    args::{Memory, OrAll, count_or_all, file_bytes, warn_of_budget},
    interrupt::Interrupts,
    made,
    out::{Out, Progress, note},
    shared::{DEFAULT_CTX, Running, Talker},
    stats::{Record, Stats},
};

/// Talk with a model
///
/// What you type is put into the model's own chat template, and its answer appears as it comes; what it thinks before is dim
/// on a terminal, and left out elsewhere. /help lists the commands. Ctrl-C stops an answer; /exit or Ctrl-D leaves. Each line of
/// a pipe is a message or a command, too. What was computed of the conversation is kept, so that a turn costs its own tokens
/// only.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    talker: Talker,
    /// Instructions for the model
    #[arg(
        long,
        visible_alias = "system-prompt",
        visible_short_alias = 'S',
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    system: Option<String>,
    /// Whether the model thinks before it answers, where its template has a switch for that; default: as the template has it
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    think: Option<bool>,
    /// How long the model thinks, where its template knows that: low, medium, high
    #[arg(long, value_name = "EFFORT")]
    reasoning_effort: Option<String>,
    /// Tokens of an answer at most; -1: until the model ends it or the context is full
    #[arg(
        short = 'n',
        long,
        visible_aliases = ["n-predict", "predict"],
        value_name = "TOKENS",
        default_value = "-1",
        value_parser = count_or_all::<{ u32::MAX as usize }>,
        allow_negative_numbers = true
    )]
    max_tokens: OrAll,
    #[command(flatten)]
    running: Running,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

/// A saved conversation has at most so many bytes.
const MAX_SAVED_BYTES: u64 = 64 << 20;

/// The verb.
pub fn run(args: &Args) -> Ended {
    let running = &args.running;
    running.check()?;
    let (gguf, converser) = args.talker.open()?;
    check_thinking(args, &converser)?;
    if !running.quiet {
        args.talker.introduce(&gguf, &converser);
    }
    let start = running.start(&gguf)?;
    let options = running.engine.options(&gguf, running.n_ctx(&gguf, DEFAULT_CTX)?)?;
    let (mut record, bytes) = (Record::new(&gguf), file_bytes(&gguf));
    warn_of_budget(&gguf, &options, running.quiet);
    let mut session = {
        let bar = Progress::bytes("loading", running.quiet);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    running.begin(&start, &mut session)?;
    record.seed = Some(running.sampling.config(0).seed);
    let mut chat = Chat {
        args,
        rules: Rules { max_tokens: args.max_tokens.0, visible: converser.visible(), ..Rules::default() },
        converser,
        kept: KeptSession::new(session),
        messages: Vec::new(),
        record,
        file_bytes: bytes,
        interrupts: Interrupts::watch(None)?,
    };
    chat.set_system(args.system.clone());
    let ended = chat.talk();
    start.remember(chat.kept.session());
    match ended {
        Ok(()) | Err(Stop::Pipe) => Ok(ExitCode::SUCCESS),
        Err(stop) => Err(stop),
    }
}

/// Switches that the template does not have are not passed over.
fn check_thinking(args: &Args, converser: &Converser) -> Result<(), Stop> {
    let refused = |option: &str, what: &str| {
        Err(Stop::Error(Error::invalid(format!("{option}: the model's chat template has no {what}"))))
    };
    if args.think.is_some() && !converser.template.knows_thinking() {
        return refused("--think", "enable_thinking");
    }
    if args.reasoning_effort.is_some() && !converser.template.knows_effort() {
        return refused("--reasoning-effort", "reasoning_effort");
    }
    Ok(())
}

/// See the module.
struct Chat<'a> {
    args: &'a Args,
    converser: Converser,
    kept: KeptSession<Cpu>,
    rules: Rules,
    messages: Vec<Message>,
    record: Record,
    file_bytes: u64,
    interrupts: Interrupts,
}

impl Chat<'_> {
    /// Until the end of the input.
    fn talk(&mut self) -> Result<(), Stop> {
        let mut lines = Lines::new()?;
        loop {
            let line = match lines.next()? {
                Next::Line(line) if line.trim().is_empty() => continue,
                Next::Line(line) => line,
                Next::Interrupted => {
                    note(format_args!("/exit or Ctrl-D leaves"));
                    continue;
                }
                Next::End => return Ok(()),
            };
            let done = match Line::parse(&line) {
                Ok(Line::Exit) => return Ok(()),
                Ok(line) => self.obey(line),
                Err(sentence) => Err(Stop::usage(sentence)),
            };
            match done {
                Ok(()) => {}
                Err(Stop::Pipe) => return Err(Stop::Pipe),
                // One wrong line does not end a conversation.
                Err(Stop::Usage(sentence)) => note(format_args!("{sentence}")),
                Err(Stop::Error(error)) => note(format_args!("{error}")),
            }
        }
    }

    fn obey(&mut self, line: Line) -> Result<(), Stop> {
        match line {
            Line::Say(text) => return self.say(text),
            Line::Stats => {
                let session = self.kept.session();
                Stats::new(session, &self.args.running.engine, self.record.clone(), "chat")?
                    .print(self.args.running.verbose);
                note(format_args!("{} of {} tokens of context are in use", session.n_past(), session.plan().n_ctx));
            }
            Line::Memory(size) => self.set_memory(size)?,
            Line::Reset => {
                self.messages.retain(|message| message.role == Role::System);
                note(format_args!("the conversation is forgotten"));
            }
            Line::Undo => {
                let last = self.messages.iter().rposition(|message| message.role == Role::User);
                let last = last.ok_or_else(|| Error::invalid("there is nothing to undo"))?;
                self.messages.truncate(last);
                note(format_args!("the last question is forgotten"));
            }
            Line::Save(file) => {
                self.save(&file)?;
                note(format_args!("saved {} messages to {}", self.messages.len(), file.display()));
            }
            Line::Load(file) => {
                self.messages = load(&file)?;
                note(format_args!("loaded {} messages from {}", self.messages.len(), file.display()));
            }
            Line::System(text) => self.set_system(text),
            Line::Help => HELP.lines().for_each(|line| super::out::plain(format_args!("{line}"))),
            Line::Exit => {}
        }
        Ok(())
    }

    fn set_system(&mut self, text: Option<String>) {
        self.messages.retain(|message| message.role != Role::System);
        if let Some(text) = text {
            self.messages.insert(0, Message::text(Role::System, text));
        }
    }

    fn set_memory(&mut self, size: Option<Memory>) -> Result<()> {
        if let Some(size) = size {
            let bytes = size.bytes(self.file_bytes);
            let bytes = bytes.ok_or_else(|| Error::invalid("/memory needs a size, such as 6GiB"))?;
            self.kept.set_memory(bytes)?;
            self.record.budget_set = true;
        }
        let now = human_bytes(self.kept.session().memory_bytes());
        note(format_args!("the memory budget is {now}"));
        Ok(())
    }

    fn save(&self, file: &Path) -> Result<()> {
        let mut new = NewFile::create_new(file)?;
        let text = serde_json::to_string_pretty(&self.messages).expect("strings are JSON");
        new.write(text.as_bytes())?;
        new.write(b"\n")?;
        new.finish()
    }

    /// A turn. A question that cannot be answered is not kept.
    fn say(&mut self, text: String) -> Result<(), Stop> {
        self.messages.push(Message::text(Role::User, text));
        let mut answer = Message::text(Role::Assistant, "");
        let answered = self.answer(&mut answer);
        match &answered {
            Err(_) if answer.content.is_empty() && answer.reasoning.is_empty() => drop(self.messages.pop()),
            _ => self.messages.push(answer),
        }
        let answered = answered?;
        self.record.generated += answered.generated as u64;
        match answered.finish {
            Finish::Context => {
                let n_ctx = self.kept.session().plan().n_ctx;
                note(format_args!(
                    "the context of {n_ctx} tokens is full: the answer stops here (/undo, /reset, or --ctx)"
                ));
            }
            Finish::Length if !self.args.running.quiet => note(format_args!("the answer stops at --max-tokens")),
            Finish::Cancelled => note(format_args!("stopped")),
            Finish::Length | Finish::End(_) | Finish::Stop(_) => {}
        }
        Ok(())
    }

    fn answer(&mut self, message: &mut Message) -> Result<Answered, Stop> {
        let settings = Settings {
            enable_thinking: self.args.think,
            reasoning_effort: self.args.reasoning_effort.clone(),
            unix_seconds: made::unix_seconds(),
            ..Settings::default()
        };
        let prompt = self.converser.prompt(&self.messages, &settings)?;
        let session = self.kept.session();
        let mut config = self.args.running.sampling.config(session.plan().n_ctx);
        // Another one for each turn, and the same conversation again for the same seed.
        config.seed = self.record.seed.unwrap_or(config.seed).wrapping_add(self.messages.len() as u64);
        let mut sampler = Sampler::new(config, session.blueprint().n_vocab)?;
        let mut parser = Parser::new(self.converser.template.family(), Tools::default(), &prompt.text);
        let mut view = View { out: Out::new(), message, dim: false, ends_line: true };
        let interrupts = &self.interrupts;
        interrupts.forget();
        let n_fresh = prompt.tokens.len() - self.kept.reusable(&prompt.tokens);
        let bar = Progress::tokens("prompt", self.args.running.quiet || n_fresh <= session.plan().n_batch);
        let tokenizer = &self.converser.tokenizer;
        let answered = self.kept.answer(tokenizer, &prompt.tokens, &mut sampler, &self.rules, &mut |_, event| {
            match event {
                Event::Prompt { done, of } => bar.set(done as u64, of as u64),
                Event::Token { text, .. } | Event::Rest(text) => view.show(parser.push(text))?,
                Event::Decoded => {}
            }
            Ok::<_, Stop>(!interrupts.asked_to_stop())
        });
        view.show(parser.finish())?;
        view.finish()?;
        let answered = answered?;
        if self.args.running.verbose {
            note(format_args!("{} of {} prompt tokens were there already", answered.reused, prompt.tokens.len()));
        }
        Ok(answered)
    }
}

/// A saved conversation.
fn load(file: &Path) -> Result<Vec<Message>> {
    let bytes = input::read(file, MAX_SAVED_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(file, format!("this is no saved conversation: {e}")))
}

/// The answer on standard output, and in the conversation.
struct View<'a> {
    out: Out,
    message: &'a mut Message,
    dim: bool,
    ends_line: bool,
}

impl View<'_> {
    fn show(&mut self, deltas: Vec<Delta>) -> Result<(), Stop> {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => {
                    self.message.reasoning.push_str(&text);
                    if self.out.is_terminal() {
                        self.set_dim(true)?;
                        self.text(&text)?;
                    }
                }
                Delta::Content(text) => {
                    self.set_dim(false)?;
                    self.message.content.push_str(&text);
                    self.text(&text)?;
                }
                Delta::Call(call) => {
                    self.set_dim(false)?;
                    self.text(&format!("[calls {} {}]", call.name, call.arguments))?;
                    self.message.tool_calls.push(call);
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Stop> {
        self.ends_line = text.ends_with('\n');
        self.out.generated(text)
    }

    /// Reasoning and answer stand on lines of their own.
    fn set_dim(&mut self, dim: bool) -> Result<(), Stop> {
        if self.dim != dim {
            if !self.ends_line {
                self.text("\n")?;
            }
            self.dim = dim;
            self.out.dim(dim)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Stop> {
        self.set_dim(false)?;
        if self.ends_line { Ok(()) } else { self.out.generated("\n") }
    }
}
