//! Cuts a filter or an `order_by` clause into keys, comparators and literals.

use super::{Problem, refuse};

/// What is left to read.
#[derive(Clone, Copy)]
pub(super) struct Scanner<'a> {
    rest: &'a str,
}

/// One comparison as it is written.
pub(super) struct Clause<'a> {
    pub(super) left: Operand<'a>,
    /// Upper case, one space between words.
    pub(super) op: &'a str,
    /// None with IS NULL and IS NOT NULL.
    pub(super) right: Option<Operand<'a>>,
}

/// What stands on one side of a comparator.
pub(super) enum Operand<'a> {
    /// Names joined by dots, each bare or quoted.
    Word(&'a str),
    /// A text with its quotes.
    Text(&'a str),
    Number(&'a str),
    /// Names joined by signs of arithmetic, which MLflow takes for names when it searches logged models.
    Formula(&'a str),
    List {
        raw: &'a str,
        items: Result<Vec<String>, Problem>,
    },
}

impl<'a> Operand<'a> {
    /// As it is written.
    pub(super) fn raw(&self) -> &'a str {
        match self {
            Self::Word(raw) | Self::Text(raw) | Self::Number(raw) | Self::Formula(raw) | Self::List { raw, .. } => raw,
        }
    }

    /// Whether it can name a field: double quotes serve for names and texts alike.
    pub(super) fn is_identifier(&self) -> bool {
        matches!(self, Self::Word(_)) || matches!(self, Self::Text(raw) if raw.starts_with('"'))
    }
}

/// The comparators that are words; longer ones stand before their own endings. Some are read only to be refused.
const WORDS: [&str; 10] =
    ["IS NOT NULL", "IS NULL", "NOT IN", "IN", "NOT LIKE", "LIKE", "NOT ILIKE", "ILIKE", "NOT RLIKE", "RLIKE"];

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.trim_start() }
    }

    /// What no method has taken yet, without leading space.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `phrase` in any case and with any space between its words, or nothing.
    pub(super) fn keyword(&mut self, phrase: &str) -> bool {
        let mut after = self.rest;
        for word in phrase.split(' ') {
            match after.split_at_checked(word.len()) {
                Some((start, rest)) if start.eq_ignore_ascii_case(word) && !rest.starts_with(is_word) => {
                    after = rest.trim_start();
                }
                _ => return false,
            }
        }
        self.rest = after;
        true
    }

    /// Takes a comparison, or nothing.
    pub(super) fn clause(&mut self) -> Option<Clause<'a>> {
        let mut ahead = *self;
        let left = ahead.operand()?;
        let op = ahead.operator()?;
        let right = if op.starts_with("IS ") { None } else { Some(ahead.operand()?) };
        if matches!(op, "IN" | "NOT IN") && !matches!(right, Some(Operand::List { .. })) {
            return None;
        }
        *self = ahead;
        Some(Clause { left, op, right })
    }

    fn operator(&mut self) -> Option<&'a str> {
        let signs = self.rest.len() - self.rest.trim_start_matches(['<', '>', '=', '!', '~']).len();
        if signs > 0 {
            return Some(self.take(signs));
        }
        WORDS.into_iter().find(|word| self.keyword(word))
    }

    /// Takes a name, a literal or a list.
    pub(super) fn operand(&mut self) -> Option<Operand<'a>> {
        match self.rest.chars().next()? {
            '(' => self.list(),
            '\'' => self.quoted().map(Operand::Text),
            '-' | '.' | '0'..='9' => self.number().or_else(|| self.names()),
            _ => self.names(),
        }
    }

    fn names(&mut self) -> Option<Operand<'a>> {
        let first = name_len(self.rest)?;
        let (mut end, mut is_formula) = (first, false);
        while let Some(joint) = self.rest[end..].chars().next().filter(|c| matches!(c, '.' | '-' | '+' | '/')) {
            is_formula |= joint != '.';
            end += 1 + name_len(&self.rest[end + 1..]).unwrap_or(0);
        }
        let is_text = self.rest.starts_with('"') && end == first;
        let raw = self.take(end);
        Some(match (is_text, is_formula) {
            (true, _) => Operand::Text(raw),
            (false, true) => Operand::Formula(raw),
            (false, false) => Operand::Word(raw),
        })
    }

    fn number(&mut self) -> Option<Operand<'a>> {
        let mut before = 'e'; // a sign stands at the start or behind an exponent's e
        let ends = |c: char| {
            let belongs = is_word(c) || c == '.' || c == '-' && matches!(before, 'e' | 'E');
            before = c;
            !belongs
        };
        let raw = &self.rest[..self.rest.find(ends).unwrap_or(self.rest.len())];
        let is_plain = raw.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'e' | b'E'));
        (is_plain && raw.parse::<f64>().is_ok()).then(|| Operand::Number(self.take(raw.len())))
    }

    fn quoted(&mut self) -> Option<&'a str> {
        quoted_len(self.rest).map(|len| self.take(len))
    }

    /// Takes a list up to its closing parenthesis, be its items texts or not.
    fn list(&mut self) -> Option<Operand<'a>> {
        const PARSING: &str = "While parsing a list in the query, expected";
        let mut ahead = *self;
        ahead.take(1);
        let (mut items, mut has_comma) = (Vec::new(), true);
        let (mut is_ill_formed, mut has_number) = (false, false);
        loop {
            match ahead.rest.chars().next()? {
                ')' => break,
                ',' => {
                    is_ill_formed |= has_comma;
                    has_comma = true;
                    ahead.take(1);
                }
                '\'' | '"' => {
                    let raw = ahead.quoted()?;
                    is_ill_formed |= !has_comma;
                    has_comma = false;
                    items.push(unquoted(raw).to_owned());
                }
                c => {
                    let is_number = ahead.number().is_some();
                    if !is_number {
                        ahead.take(c.len_utf8());
                    }
                    is_ill_formed |= !(is_number && has_comma);
                    has_number |= is_number;
                    has_comma = false;
                }
            }
        }
        let raw = &self.rest[..=self.rest.len() - ahead.rest.len()];
        self.take(raw.len());
        let items = if is_ill_formed {
            refuse(format!("{PARSING} a non-empty list of string values, but got ill-formed list."))
        } else if has_number {
            refuse(format!("{PARSING} string value, punctuation, or whitespace, but got different type in list: {raw}"))
        } else if items.is_empty() {
            refuse(format!("{PARSING} a non-empty list of string values, but got empty list"))
        } else {
            Ok(items)
        };
        Some(Operand::List { raw, items })
    }

    /// Takes so many bytes, and the space behind them.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest.trim_start();
        taken
    }
}

/// A quoted text without its quotes.
pub(super) fn unquoted(raw: &str) -> &str {
    &raw[1..raw.len() - 1]
}

/// Length of the name at the start of `text`, bare or in any quotes.
fn name_len(text: &str) -> Option<usize> {
    if text.starts_with(['"', '\'', '`']) {
        return quoted_len(text);
    }
    let len = text.find(|c| !is_word(c)).unwrap_or(text.len());
    (len > 0).then_some(len)
}

/// Length of the text at the start of `text` that is in the quotes of its first byte, quotes included.
///
/// A doubled quote and one behind a backslash belong to the text, unless no other follows to end it. They stay in it as
/// they are written.
fn quoted_len(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let quote = *bytes.first()?;
    let (mut at, mut last_inner) = (1, None);
    while at < bytes.len() {
        let inner = match (bytes[at], bytes.get(at + 1)) {
            (byte, Some(&next)) if byte == quote && next == quote => Some(at),
            (b'\\', Some(&next)) if next == quote && quote != b'`' => Some(at + 1),
            (byte, _) if byte == quote => return Some(at + 1),
            _ => None,
        };
        at += if inner.is_some() { 2 } else { 1 };
        last_inner = inner.or(last_inner);
    }
    last_inner.map(|at| at + 1)
}
