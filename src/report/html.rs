//! Text as a page's source: what is escaped here cannot become markup.

/// `text` for use between tags and inside quoted attributes. Control characters, which HTML forbids, and characters that
/// turn the reading direction of what follows them become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A figure with its title, what explains it, and its picture's source.
pub fn figure(title: &str, picture: &str, key: &str, note: &str) -> String {
    let (title, note) = (escape(title), escape(note));
    format!("<figure><h3>{title}</h3>\n{picture}\n{key}<figcaption>{note}</figcaption></figure>\n")
}

/// Names beside samples of how their lines or areas look. `shape`: `line` or `area`.
pub fn key<'a>(shape: &str, entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let sample = |class: &str| match shape {
        "line" => format!("<line class=\"l {class}\" x1=\"0\" y1=\"6\" x2=\"26\" y2=\"6\"/>"),
        _ => format!("<rect class=\"{class}\" x=\"8\" y=\"0\" width=\"12\" height=\"12\"/>"),
    };
    let entry = |(class, name): (&str, &str)| {
        format!("<li><svg viewBox=\"0 0 28 12\" aria-hidden=\"true\">{}</svg>{}</li>", sample(class), escape(name))
    };
    format!("<ul class=\"key\">{}</ul>\n", entries.into_iter().map(entry).collect::<String>())
}

/// A table of texts; the first row and the first column are heads.
pub fn table(summary: &str, rows: &[Vec<String>]) -> String {
    let row = |(i, cells): (usize, &Vec<String>)| {
        let cell = |(j, text): (usize, &String)| {
            let tag = if i == 0 || j == 0 { "th" } else { "td" };
            format!("<{tag}>{}</{tag}>", escape(text))
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    format!(
        "<details><summary>{}</summary><div class=\"scroll\"><table>\n{}</table></div></details>\n",
        escape(summary),
        rows.iter().enumerate().map(row).collect::<String>()
    )
}
