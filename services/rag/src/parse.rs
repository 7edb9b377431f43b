//! Documents as they are handed in, turned into text that can be cut.

mod html;

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

use crate::document::MAX_TITLE_BYTES;

/// What can be ingested, for messages.
pub(crate) const SUPPORTED: &str = "text/plain, text/markdown, text/html";

/// Largest document, in bytes.
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// Most bytes of title, headings, URI and metadata in all passages of a document together.
pub(crate) const MAX_REPEATED_BYTES: usize = 128 << 20;

/// Text with its structure.
#[derive(Debug, PartialEq)]
pub(crate) struct Text {
    /// What the spans of chunks count in: the document itself, or for HTML the text taken from it.
    pub(crate) text: String,
    pub(crate) syntax: Syntax,
    /// The title the document gives itself, at most [`MAX_TITLE_BYTES`] of it.
    pub(crate) title: Option<String>,
    /// In order of their place.
    pub(crate) headings: Vec<Heading>,
}

/// How the structure of a text is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Syntax {
    /// Paragraphs apart by empty lines.
    Plain,
    Markdown,
}

/// A heading and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heading {
    pub(crate) start: usize,
    /// 1 is the outermost.
    pub(crate) level: u8,
    /// At most [`MAX_TITLE_BYTES`] of it.
    pub(crate) text: String,
}

/// Why a document can't be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("content type `{0}` is not supported; send {SUPPORTED}")]
    Type(String),
    #[error("charset `{0}` is not supported; send UTF-8")]
    Charset(String),
    #[error("the document is not valid UTF-8 from byte {0} on")]
    NotUtf8(usize),
    #[error("the document has no text")]
    Empty,
    #[error("the document has {0} bytes; at most {MAX_BYTES} are taken")]
    TooLarge(usize),
    #[error(
        "the passages would repeat title, headings, uri and metadata in {0} bytes; at most {MAX_REPEATED_BYTES} are \
         taken: shorten these, or split the document"
    )]
    RepeatsTooMuch(usize),
}

impl Unreadable {
    /// The reason for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Type(_) => "UNSUPPORTED_TYPE",
            Self::Charset(_) => "UNSUPPORTED_CHARSET",
            Self::NotUtf8(_) => "NOT_UTF8",
            Self::Empty => "EMPTY_DOCUMENT",
            Self::TooLarge(_) | Self::RepeatsTooMuch(_) => "TOO_LARGE",
        }
    }
}

/// Reads a document of type text/plain, text/markdown or text/html.
pub(crate) fn parse(content_type: &str, content: Vec<u8>) -> Result<Text, Unreadable> {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    });
    if !matches!(essence.as_str(), "text/plain" | "text/markdown" | "text/html") {
        return Err(Unreadable::Type(essence));
    }
    if let Some(charset) = charset.filter(|charset| !matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii")) {
        return Err(Unreadable::Charset(charset));
    }
    if content.len() > MAX_BYTES {
        return Err(Unreadable::TooLarge(content.len()));
    }
    let text = String::from_utf8(content).map_err(|error| Unreadable::NotUtf8(error.utf8_error().valid_up_to()))?;
    let mut text = match essence.as_str() {
        "text/html" => html::parse(&text),
        "text/markdown" => {
            let headings = markdown_headings(&text);
            let title = headings.iter().find(|heading| heading.level == 1).map(|heading| heading.text.clone());
            Text { text, syntax: Syntax::Markdown, title, headings }
        }
        _ => Text { text, syntax: Syntax::Plain, title: None, headings: Vec::new() },
    };
    if text.text.chars().all(|c| c.is_whitespace() || c == '\u{feff}') {
        return Err(Unreadable::Empty);
    }
    // A heading may be as long as the document, and each passage below repeats it.
    for long in text.headings.iter_mut().map(|heading| &mut heading.text).chain(&mut text.title) {
        long.truncate(long.floor_char_boundary(MAX_TITLE_BYTES));
    }
    Ok(text)
}

fn markdown_headings(text: &str) -> Vec<Heading> {
    let mut headings: Vec<Heading> = Vec::new();
    let mut inside = false;
    for (event, span) in Parser::new(text).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                inside = true;
                headings.push(Heading { start: span.start, level: number(level), text: String::new() });
            }
            Event::End(TagEnd::Heading(_)) => inside = false,
            Event::Text(part) | Event::Code(part) if inside => {
                if let Some(heading) = headings.last_mut() {
                    heading.text.push_str(&part);
                }
            }
            Event::SoftBreak | Event::HardBreak if inside => {
                if let Some(heading) = headings.last_mut() {
                    heading.text.push(' ');
                }
            }
            _ => {}
        }
    }
    headings.retain(|heading| !heading.text.trim().is_empty());
    headings
}

fn number(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

impl Text {
    /// Returns the headings above byte `at`, outermost first. A heading that begins at `at` counts.
    pub(crate) fn headings_at(&self, at: usize) -> Vec<String> {
        let mut path: Vec<&Heading> = Vec::new();
        for heading in self.headings.iter().take_while(|heading| heading.start <= at) {
            path.retain(|above| above.level < heading.level);
            path.push(heading);
        }
        path.into_iter().map(|heading| heading.text.trim().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, content: &str) -> Result<Text, Unreadable> {
        parse(content_type, content.as_bytes().to_vec())
    }

    #[test]
    fn each_unreadable_document_has_its_own_reason() {
        let reason = |result: Result<Text, Unreadable>| result.unwrap_err().reason();
        assert_eq!(reason(read("application/pdf", "x")), "UNSUPPORTED_TYPE");
        assert_eq!(reason(read("", "x")), "UNSUPPORTED_TYPE");
        assert_eq!(reason(read("text/plain; charset=latin1", "x")), "UNSUPPORTED_CHARSET");
        assert_eq!(reason(read("text/plain", " \n\t")), "EMPTY_DOCUMENT");
        assert_eq!(reason(read("text/html", "<script>let x = 1</script>")), "EMPTY_DOCUMENT");
        assert_eq!(parse("text/plain", vec![b'a', 0xff]), Err(Unreadable::NotUtf8(1)));
        assert_eq!(reason(parse("text/plain", vec![b'a'; MAX_BYTES + 1])), "TOO_LARGE");
    }

    #[test]
    fn the_type_may_have_parameters_and_any_case() {
        assert!(read("Text/Plain; Charset=\"UTF-8\"; format=flowed", "x").is_ok());
    }

    #[test]
    fn plain_text_is_kept_byte_for_byte() {
        assert_eq!(read("text/plain", "  a\r\nb ").unwrap().text, "  a\r\nb ");
    }

    #[test]
    fn markdown_knows_its_title_and_the_headings_above_each_place() {
        let source =
            "intro\n\n# The *Big* `One`\n\ntext\n\n## A\n\na\n\n### Deep\n\ndeep\n\n## B\n\nb\n\nSet\n===\n\nend\n";
        let text = read("text/markdown", source).unwrap();
        assert_eq!(text.title.as_deref(), Some("The Big One"));
        let at = |needle: &str| text.headings_at(source.find(needle).unwrap());
        assert_eq!(at("intro"), Vec::<String>::new());
        assert_eq!(at("deep"), ["The Big One", "A", "Deep"]);
        assert_eq!(at("## B"), ["The Big One", "B"]);
        assert_eq!(at("end"), ["Set"]);
    }

    #[test]
    fn a_heading_as_long_as_the_document_is_cut_on_a_character_border() {
        let text = read("text/markdown", &format!("x{}\n===\n\nbelow\n", "é ".repeat(300_000))).unwrap();
        assert_eq!(text.headings_at(text.text.len() - 2)[0].len(), MAX_TITLE_BYTES - 1, "the last é is left out");
        assert!(text.title.unwrap().starts_with("xé é"));
        let text = read("text/html", &format!("<title>{0}</title><h1>{0}</h1>", "long ".repeat(300_000))).unwrap();
        assert_eq!((text.title.unwrap().len(), text.headings[0].text.len()), (MAX_TITLE_BYTES, MAX_TITLE_BYTES));
    }

    #[test]
    fn a_heading_inside_a_code_block_is_code() {
        assert_eq!(read("text/markdown", "```\n# no\n```\n").unwrap().headings, []);
    }
}
