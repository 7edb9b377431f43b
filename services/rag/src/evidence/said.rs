//! What a text says, as far as answers and sentences are compared.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::words::Words;

/// Words that negate. What ends in "n't" does as well.
const NEGATIONS: [&str; 7] = ["cannot", "neither", "never", "no", "none", "nor", "not"];

/// The terms of a text, and whether it negates.
pub(super) struct Said {
    /// Stems of words, and numbers whole: their thousands unmarked, their sign kept.
    pub(super) terms: BTreeSet<String>,
    pub(super) negates: bool,
}

impl Said {
    pub(super) fn by(words: &Words, text: &str) -> Self {
        let mut terms = BTreeSet::new();
        let mut rest = String::with_capacity(text.len());
        let mut at = 0;
        for span in numbers(text) {
            terms.insert(normal(text, span.clone()));
            rest.push_str(&text[at..span.start]);
            rest.push(' ');
            at = span.end;
        }
        rest.push_str(&text[at..]);
        terms.extend(words.stems(&rest));
        Self { terms, negates: negates(text) }
    }
}

/// Whether a term must be carried, however many others are: a number, or a name with one in it.
pub(super) fn is_exact(term: &str) -> bool {
    term.bytes().any(|byte| byte.is_ascii_digit())
}

/// Returns where numbers stand: digits, single '.' or ',' between digits, and letters that follow at once, as in "5th".
fn numbers(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut chars = text.char_indices().peekable();
    let mut before = None;
    while let Some((start, first)) = chars.next() {
        if !first.is_ascii_digit() || before.is_some_and(char::is_alphanumeric) {
            before = Some(first);
            continue;
        }
        let mut end = start + 1;
        while let Some(&(place, next)) = chars.peek() {
            let joins = matches!(next, '.' | ',') && text[place + 1..].starts_with(|c: char| c.is_ascii_digit());
            if !joins && !next.is_alphanumeric() {
                break;
            }
            end = place + next.len_utf8();
            chars.next();
        }
        before = text[..end].chars().next_back();
        spans.push(start..end);
    }
    spans
}

/// Returns a number as it is compared: "12,000" as "12000", ".5" as "0.5", "−5" as "-5".
fn normal(text: &str, span: Range<usize>) -> String {
    let mut before = text[..span.start].chars().rev().peekable();
    // A mark is the number's own where nothing stands before it that it could belong to: not in "1990-95", "fig.5".
    let stands_apart = |c: Option<&char>| c.is_none_or(|c| c.is_whitespace() || "([{\"'“‘=<>≤≥~±".contains(*c));
    let mut number = without_thousands(&text[span]).to_lowercase();
    if before.peek() == Some(&'.') {
        let mut further = before.clone();
        further.next();
        if stands_apart(further.peek()) || matches!(further.peek(), Some('-' | '−' | '+')) {
            number.insert_str(0, "0.");
            before = further;
        }
    }
    if matches!(before.peek(), Some('-' | '−')) {
        before.next();
        if stands_apart(before.peek()) {
            number.insert(0, '-');
        }
    }
    number
}

/// Takes the commas out where they stand between groups of three digits, and only there.
fn without_thousands(number: &str) -> String {
    let whole = number.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(number.len());
    let groups: Vec<&str> = number[..whole].split(',').collect();
    let marked = groups.len() > 1 && groups[0].len() <= 3 && groups[1..].iter().all(|group| group.len() == 3);
    if marked { groups.concat() + &number[whole..] } else { number.to_owned() }
}

fn negates(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && !matches!(c, '\'' | '’')).any(|word| {
        let word = word.trim_matches(['\'', '’']).replace('’', "'").to_lowercase();
        NEGATIONS.contains(&word.as_str()) || word.ends_with("n't")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Vec<String> {
        Said::by(&Words::default(), text).terms.into_iter().collect()
    }

    #[test]
    fn numbers_are_whole_with_their_sign_and_without_marks_of_thousands() {
        assert_eq!(terms("5.3 % of 12,000"), ["12000", "5.3"]);
        assert_eq!(terms("1,234,567.89 and 1,5 and 12,00"), ["1,5", "12,00", "1234567.89"]);
        assert_eq!(terms("-5, (−7) and +3"), ["-5", "-7", "3"]);
        assert_eq!(terms(".5, -.25 and 1.2.3."), ["-0.25", "0.5", "1.2.3"]);
    }

    #[test]
    fn a_hyphen_or_a_stop_between_things_is_no_sign_and_no_zero() {
        assert_eq!(terms("1990-95"), ["1990", "95"]);
        assert_eq!(terms("fig.5"), ["5", "fig"]);
        assert_eq!(terms("It was 5. Then"), ["5"]);
    }

    #[test]
    fn digits_in_a_name_belong_to_the_name() {
        assert_eq!(terms("unit12 of the 5th A-320"), ["320", "5th", "unit12"]);
    }

    #[test]
    fn negations_are_seen_in_their_short_forms_as_well() {
        for text in ["It is not.", "No loan", "can't", "isn’t", "It NEVER is", "neither", "(not)"] {
            assert!(negates(text), "{text}");
        }
        for text in ["It is.", "knot", "north", "nothing's 'note'", "want"] {
            assert!(!negates(text), "{text}");
        }
    }
}
