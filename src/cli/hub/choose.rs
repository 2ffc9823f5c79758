//! Which of a repository's files are a model, and which model is meant.

use super::Remote;

/// A model: one file, or all files of a split set in order.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its type as its files' names tell it, `Q4_K_M`; else their name.
    pub label: String,
    /// In the set's order.
    pub files: Vec<Remote>,
}

impl Model {
    /// Of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

/// Types in the order in which one is taken where none is named: the usual trade of size for quality, then its neighbours.
const USUAL: [&str; 8] = ["Q4_K_M", "UD-Q4_K_XL", "MXFP4_MOE", "MXFP4", "Q4_K_S", "Q4_K", "IQ4_XS", "Q4_0"];

/// Every model in a repository, smallest first. Vision projectors and importance matrices are none.
pub fn models(files: &[Remote]) -> Vec<Model> {
    let mut models: Vec<(String, Model)> = Vec::new();
    for file in files {
        let lower = file.name.to_lowercase();
        let stem = lower.rsplit('/').next().unwrap_or(&lower).strip_suffix(".gguf");
        let Some(stem) = stem.filter(|stem| !stem.contains("mmproj") && !stem.contains("imatrix")) else { continue };
        let whole = whole(&file.name);
        let known = models.iter_mut().find(|(known, _)| known == whole);
        if let Some((_, model)) = known.filter(|_| split_of(&format!("{stem}.gguf")).is_some()) {
            model.files.push(file.clone());
            continue;
        }
        models.push((whole.to_owned(), Model { label: label(whole), files: vec![file.clone()] }));
    }
    let mut models: Vec<_> = models.into_iter().map(|(_, model)| model).filter(is_complete).collect();
    models.iter_mut().for_each(|model| model.files.sort_by(|a, b| a.name.cmp(&b.name)));
    models.sort_by_key(Model::bytes);
    models
}

/// The model that is meant.
///
/// # Errors
/// A sentence that lists what there is, where nothing or more than one is meant.
pub fn choose(repo: &str, models: Vec<Model>, wanted: Option<&str>) -> Result<Model, String> {
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    let is = |model: &Model, wanted: &str| {
        same(&model.label, wanted)
            || model.files.iter().any(|f| same(&f.name, wanted))
            || model.label.get(..3).is_some_and(|ud| same(ud, "UD-") && same(&model.label[3..], wanted))
    };
    let found = match wanted {
        // A type by itself wins over the same type in another's recipe.
        Some(wanted) => {
            let exact = models.iter().position(|m| same(&m.label, wanted));
            exact.or_else(|| models.iter().position(|m| is(m, wanted)))
        }
        None if models.len() == 1 => Some(0),
        None => USUAL.iter().find_map(|usual| models.iter().position(|m| same(&m.label, usual))),
    };
    let mut models = models;
    if let Some(found) = found {
        return Ok(models.swap_remove(found));
    }
    if models.is_empty() {
        return Err(format!("{repo} has no GGUF model (repositories that do often end in -GGUF)"));
    }
    let list: Vec<_> = models.iter().map(|m| format!("{} ({})", m.label, hotset::human_bytes(m.bytes()))).collect();
    let which = wanted.map_or(String::new(), |wanted| format!(" no {wanted}, but"));
    Err(format!("{repo} has{which} {}: name one as in {repo}:{}", list.join(", "), models[0].label))
}

/// The name without the number in a split set.
fn whole(name: &str) -> &str {
    split_of(name).map_or(name, |(whole, ..)| whole)
}

/// `NAME-00002-of-00003.gguf`: (NAME, 2, 3).
fn split_of(name: &str) -> Option<(&str, usize, usize)> {
    let stem = name.get(..name.len().checked_sub(5)?)?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (whole, number) = rest.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((whole, five(number)?, five(count)?))
}

/// Whether every file of a split set is there.
fn is_complete(model: &Model) -> bool {
    split_of(&model.files[0].name).is_none_or(|(_, _, count)| model.files.len() == count)
}

/// The type in a name: the last part between dashes or dots that looks like one, with `UD-` where that is before it.
fn label(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    let stem = file.strip_suffix(".gguf").or_else(|| file.strip_suffix(".GGUF")).unwrap_or(file);
    let parts: Vec<&str> = stem.split(['-', '.']).collect();
    let Some(at) = parts.iter().rposition(|part| is_type(part)) else { return stem.to_owned() };
    let ud = at > 0 && parts[at - 1].eq_ignore_ascii_case("UD");
    format!("{}{}", if ud { "UD-" } else { "" }, parts[at].to_uppercase())
}

fn is_type(part: &str) -> bool {
    let part = part.to_uppercase();
    let digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    ["IQ", "TQ", "Q"].iter().any(|prefix| part.strip_prefix(prefix).is_some_and(digit))
        || ["BF16", "F16", "F32"].contains(&part.as_str())
        || ["MXFP4", "NVFP4"].iter().any(|prefix| part.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(name: &str, bytes: u64) -> Remote {
        Remote { name: name.to_owned(), bytes, sha256: None, blob: "0".to_owned() }
    }

    #[test]
    fn sets_are_one_model_and_projectors_are_none() {
        let files = [
            remote("README.md", 1),
            remote("UD-Q4_K_XL/m-UD-Q4_K_XL-00002-of-00002.gguf", 20),
            remote("UD-Q4_K_XL/m-UD-Q4_K_XL-00001-of-00002.gguf", 10),
            remote("mmproj-F16.gguf", 1),
            remote("m.imatrix.gguf", 1),
            remote("m-IQ2_XXS.gguf", 5),
            remote("m-Q8_0-00001-of-00002.gguf", 50),
            remote("Grok-1.gguf", 99),
        ];
        let models = models(&files);
        let labels: Vec<_> = models.iter().map(|m| (m.label.as_str(), m.bytes(), m.files.len())).collect();
        assert_eq!(labels, [("IQ2_XXS", 5, 1), ("UD-Q4_K_XL", 30, 2), ("Grok-1", 99, 1)]);
        assert!(models[1].files[0].name.contains("00001-of"), "in the set's order");
        let chosen = |wanted: Option<&str>| choose("a/b", models.clone(), wanted).map(|m| m.label);
        assert_eq!(chosen(None).unwrap(), "UD-Q4_K_XL");
        assert_eq!(chosen(Some("q4_k_xl")).unwrap(), "UD-Q4_K_XL");
        assert_eq!(chosen(Some("m-IQ2_XXS.gguf")).unwrap(), "IQ2_XXS");
        let error = chosen(Some("Q5_K_M")).unwrap_err();
        assert!(error.starts_with("a/b has no Q5_K_M, but IQ2_XXS (5 bytes), UD-Q4_K_XL"), "{error}");
        assert!(choose("a/b", Vec::new(), None).unwrap_err().contains("no GGUF model"));
    }
}
