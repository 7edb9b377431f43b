//! Text out of HTML, in one pass over its tokens: no tree, so nesting costs nothing.

use std::cell::RefCell;

use html5ever::LocalName;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::{RawKind, Rawtext, Rcdata, ScriptData};
use html5ever::tokenizer::{
    BufferQueue, CharacterTokens, EndTag, StartTag, Tag, TagToken, Token, TokenSink, TokenSinkResult, Tokenizer,
    TokenizerOpts,
};

use super::{Heading, Syntax, Text};

/// Takes the text: blocks apart by empty lines, white space folded outside `<pre>`; without scripts, styles,
/// templates and drawings.
pub(super) fn parse(source: &str) -> Text {
    let tokenizer = Tokenizer::new(Taker::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(source));
    // A sink that runs no script always lets the tokenizer go on to the end.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    let mut state = tokenizer.sink.state.into_inner();
    state.close_heading();
    let first = state.headings.iter().find(|heading| heading.level == 1).map(|heading| heading.text.clone());
    let title = Some(fold(&state.title)).filter(|title| !title.is_empty()).or(first);
    Text { text: state.text, syntax: Syntax::Plain, title, headings: state.headings }
}

fn fold(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[derive(Default)]
struct Taker {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    text: String,
    title: String,
    headings: Vec<Heading>,
    /// The heading that is open: where its text begins, and its level.
    heading: Option<(usize, u8)>,
    /// Open elements whose text is dropped, innermost last.
    dropped: Vec<LocalName>,
    in_title: bool,
    preformatted: usize,
    /// What must stand before the next text.
    gap: Gap,
}

/// What separates two pieces of text; the larger wins.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    Space,
    Line,
    Block,
}

impl TokenSink for Taker {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        let mut state = self.state.borrow_mut();
        match token {
            CharacterTokens(text) => state.characters(&text),
            TagToken(tag) if tag.kind == StartTag => {
                state.open(&tag);
                if let Some(raw) = raw(&tag.name) {
                    return TokenSinkResult::RawData(raw);
                }
            }
            TagToken(tag) if tag.kind == EndTag => state.close(&tag.name),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// How the tokenizer must read the text of an element that is not markup.
fn raw(name: &LocalName) -> Option<RawKind> {
    match &**name {
        "script" => Some(ScriptData),
        "style" | "iframe" | "noembed" | "noframes" | "xmp" => Some(Rawtext),
        "title" | "textarea" => Some(Rcdata),
        _ => None,
    }
}

fn is_dropped(name: &str) -> bool {
    matches!(name, "script" | "style" | "iframe" | "noembed" | "noframes" | "template" | "svg" | "math" | "textarea")
}

fn heading_level(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [b'h', level @ b'1'..=b'6'] => Some(level - b'0'),
        _ => None,
    }
}

fn gap_around(name: &str) -> Gap {
    match name {
        "br" | "li" | "tr" | "dt" | "dd" | "option" => Gap::Line,
        "td" | "th" => Gap::Space,
        "address" | "article" | "aside" | "blockquote" | "body" | "caption" | "center" | "details" | "dialog"
        | "div" | "dl" | "fieldset" | "figcaption" | "figure" | "footer" | "form" | "h1" | "h2" | "h3" | "h4"
        | "h5" | "h6" | "head" | "header" | "hr" | "html" | "main" | "nav" | "ol" | "p" | "pre" | "section"
        | "select" | "summary" | "table" | "tbody" | "tfoot" | "thead" | "ul" => Gap::Block,
        _ => Gap::None,
    }
}

impl State {
    fn open(&mut self, tag: &Tag) {
        let name = &*tag.name;
        if is_dropped(name) {
            if !tag.self_closing || raw(&tag.name).is_some() {
                self.dropped.push(tag.name.clone());
            }
            return;
        }
        if !self.dropped.is_empty() {
            return;
        }
        self.gap = self.gap.max(gap_around(name));
        if gap_around(name) == Gap::Block && self.heading.is_some_and(|(start, _)| start != usize::MAX) {
            self.close_heading();
        }
        match name {
            "title" => self.in_title = self.title.is_empty(),
            "pre" => self.preformatted += 1,
            _ => {
                if let Some(level) = heading_level(name) {
                    self.close_heading();
                    self.heading = Some((usize::MAX, level));
                }
            }
        }
    }

    fn close(&mut self, name: &LocalName) {
        if let Some(open) = self.dropped.iter().rposition(|open| open == name) {
            self.dropped.truncate(open);
            return;
        }
        if !self.dropped.is_empty() {
            return;
        }
        self.gap = self.gap.max(gap_around(name));
        match &**name {
            "title" => self.in_title = false,
            "pre" => self.preformatted = self.preformatted.saturating_sub(1),
            name if heading_level(name).is_some() => self.close_heading(),
            _ => {}
        }
    }

    fn close_heading(&mut self) {
        let Some((start, level)) = self.heading.take() else { return };
        let text = self.text.get(start..).map(fold).unwrap_or_default();
        if !text.is_empty() {
            self.headings.push(Heading { start, level, text });
        }
    }

    fn characters(&mut self, text: &str) {
        if !self.dropped.is_empty() {
            return;
        }
        if self.in_title {
            self.title.push_str(text);
            return;
        }
        if self.preformatted > 0 {
            if self.gap == Gap::None || !text.trim().is_empty() {
                self.bridge();
                self.text.push_str(text);
            }
            return;
        }
        if text.starts_with(char::is_whitespace) {
            self.gap = self.gap.max(Gap::Space);
        }
        for word in text.split_whitespace() {
            self.bridge();
            self.text.push_str(word);
            self.gap = Gap::Space;
        }
        if !text.ends_with(char::is_whitespace) && !text.is_empty() {
            self.gap = Gap::None;
        }
    }

    /// Writes what is due between the last text and the next, and notes where an open heading begins.
    fn bridge(&mut self) {
        if !self.text.is_empty() {
            self.text.push_str(match self.gap {
                Gap::None => "",
                Gap::Space => " ",
                Gap::Line => "\n",
                Gap::Block => "\n\n",
            });
        }
        self.gap = Gap::None;
        if let Some((start @ usize::MAX, _)) = &mut self.heading {
            *start = self.text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_inline_markup_is_not() {
        let text = parse("<p>One <b>bold</b>ly\n  said&nbsp;&amp; done.</p><p>Two<br>lines</p><ul><li>a<li>b</ul>");
        assert_eq!(text.text, "One boldly said & done.\n\nTwo\nlines\n\na\nb");
    }

    #[test]
    fn title_and_headings_are_found_with_their_places() {
        let text =
            parse("<html><head><title>A \n Title</title></head><h1>Top</h1><p>x<h2>Sub <i>part</i></h2>y</html>");
        assert_eq!(text.title.as_deref(), Some("A Title"));
        assert_eq!(text.text, "Top\n\nx\n\nSub part\n\ny");
        assert_eq!(text.headings_at(text.text.len() - 1), ["Top", "Sub part"]);
        assert_eq!(parse("<h1>Only</h1>x").title.as_deref(), Some("Only"));
    }

    #[test]
    fn scripts_and_styles_are_dropped_even_when_they_hold_tags() {
        let source =
            "a<script>if (1 < 2) document.write('<p>no</p>')</script><style>p{}</style><svg><text>no</text></svg>b";
        assert_eq!(parse(source).text, "ab");
    }

    #[test]
    fn preformatted_text_keeps_its_lines() {
        assert_eq!(parse("<p>x</p><pre>\n<i>a</i>\n  b</pre>y").text, "x\n\na\n  b\n\ny");
    }

    #[test]
    fn deep_nesting_and_broken_markup_cost_nothing() {
        let deep = "<div>".repeat(200_000) + "deep</p></table>" + &"</div>".repeat(7);
        assert_eq!(parse(&deep).text, "deep");
        assert_eq!(parse("<title>never closed").text, "");
        assert_eq!(parse("a < b and <").text, "a < b and <");
    }
}
