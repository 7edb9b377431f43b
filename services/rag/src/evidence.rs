//! Which sentences of the passages carry an answer, and how much of it.

mod said;

use std::collections::BTreeSet;
use std::ops::Range;

use crate::words::Words;

use self::said::{Said, is_exact};

/// Most sentences that are cited for one answer.
const MAX_CITED: usize = 3;

/// A sentence that carries part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evidence {
    /// Position among the passages.
    pub(crate) passage: usize,
    /// Bytes of the sentence in the passage's text.
    pub(crate) span: Range<usize>,
    /// Share of the answer's words that stand in the sentence, 0 to 1.
    pub(crate) support: f32,
}

/// Why an answer is not to be given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unfounded {
    /// It has no word that says something.
    Empty,
    /// It has no word that the question hasn't.
    RestatesQuestion,
    /// The passages don't carry enough of its words, lack a number it names, or negate where it does not.
    Unsupported,
}

/// Finds the fewest sentences that together carry the answer.
///
/// What counts are the words that the question does not have already: `min_support` of them, and every number among
/// them, must stand in the sentences. Words are compared by stem, numbers whole. An answer that negates needs a sentence
/// that does, and a sentence that negates carries only an answer or a question that does: "is refused" and "is not
/// refused" have the same words otherwise. Of sentences that carry equally much, the one that agrees in this is taken,
/// then the one that shares most with the question, then the first.
pub(crate) fn find(
    words: &Words,
    question: &str,
    answer: &str,
    passages: &[&str],
    min_support: f32,
) -> Result<Vec<Evidence>, Unfounded> {
    let question = Said::by(words, question);
    let answer = Said::by(words, answer);
    let all = &answer.terms;
    let claims: BTreeSet<&String> = all.difference(&question.terms).collect();
    if all.is_empty() {
        return Err(Unfounded::Empty);
    }
    if claims.is_empty() {
        return Err(Unfounded::RestatesQuestion);
    }

    let mut candidates: Vec<(usize, Range<usize>, Said)> = Vec::new();
    for (passage, text) in passages.iter().enumerate() {
        for span in sentences(text) {
            let said = Said::by(words, &text[span.clone()]);
            candidates.push((passage, span, said));
        }
    }

    let mut open = claims.clone();
    let mut cited: Vec<Evidence> = Vec::new();
    let mut negated = false;
    while !open.is_empty() && cited.len() < MAX_CITED {
        let carried = |said: &Said| open.iter().filter(|claim| said.terms.contains(**claim)).count();
        let shared = |said: &Said| said.terms.intersection(&question.terms).count();
        let weight = |said: &Said| (carried(said), said.negates == answer.negates, shared(said));
        // `max_by_key` takes the last of equals; reversed, that is the first.
        let best = candidates.iter().rev().max_by_key(|(_, _, said)| weight(said));
        let Some((passage, span, said)) = best.filter(|(_, _, said)| carried(said) > 0) else { break };
        let support = all.intersection(&said.terms).count() as f32 / all.len() as f32;
        cited.push(Evidence { passage: *passage, span: span.clone(), support });
        negated |= said.negates;
        open.retain(|claim| !said.terms.contains(*claim));
    }
    let carried = 1.0 - open.len() as f32 / claims.len() as f32;
    let lacks_number = open.iter().any(|claim| is_exact(claim));
    let contradicts = if answer.negates { !negated } else { negated && !question.negates };
    if cited.is_empty() || carried < min_support || lacks_number || contradicts {
        return Err(Unfounded::Unsupported);
    }
    Ok(cited)
}

/// Returns the sentences of a text as byte ranges, without the white space and list marks around them.
pub(crate) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    for block in blocks(text) {
        let mut start = block.start;
        for end in ends(&text[block.clone()]) {
            spans.push(start..block.start + end);
            start = block.start + end;
        }
        spans.push(start..block.end);
    }
    spans.into_iter().filter_map(|span| trimmed(text, span)).collect()
}

/// Paragraphs, headings, list items, table rows: what a sentence does not reach beyond.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    let mut apart = true;
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        match blocks.last_mut() {
            Some(block) if !apart && !begins_block(line) => block.end = end,
            _ => blocks.push(at..end),
        }
        // After a heading or a table row the next line begins anew; a list item may go on.
        apart = line.trim().is_empty() || line.trim_start().starts_with(['#', '|']);
        at = end;
    }
    blocks
}

/// Whether a line can't go on the sentence of the line before it: it is empty, a heading, a list item, a table row.
fn begins_block(line: &str) -> bool {
    let line = line.trim_start();
    let numbered = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.is_empty()
        || line.starts_with(['#', '|', '>'])
        || ["- ", "* ", "+ ", "```", "---"].iter().any(|mark| line.starts_with(mark))
        || (numbered.len() < line.len() && (numbered.starts_with(". ") || numbered.starts_with(") ")))
}

/// Where sentences end inside a block, as byte positions after their last mark.
fn ends(block: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    for (at, mark) in block.char_indices().filter(|(_, c)| matches!(c, '.' | '!' | '?' | '…')) {
        let after = &block[at + mark.len_utf8()..];
        let closing = after.len() - after.trim_start_matches(['"', '\'', ')', ']', '”', '’']).len();
        let rest = &after[closing..];
        let Some(next) = rest.trim_start().chars().next() else { continue };
        let before = block[..at].rsplit(char::is_whitespace).next().unwrap_or_default();
        // A mark that stands alone ends a sentence whatever follows: old transcripts write " . the next".
        let alone = before.is_empty() && at > 0;
        if rest.starts_with(char::is_whitespace) && (alone || (!next.is_lowercase() && !is_abbreviation(before, mark)))
        {
            ends.push(at + mark.len_utf8() + closing);
        }
    }
    ends
}

fn is_abbreviation(word: &str, mark: char) -> bool {
    let word = word.trim_start_matches(['(', '[', '"']);
    let short = ["dr", "mr", "mrs", "ms", "prof", "st", "no", "fig", "eq", "vs", "cf", "al", "etc", "inc", "approx"];
    mark == '.'
        && (word.chars().count() == 1 && word.chars().all(char::is_alphabetic)
            || word.contains('.') && word.split('.').all(|part| part.chars().count() <= 1)
            || short.contains(&word.to_lowercase().as_str()))
}

fn trimmed(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let inner = &text[span.clone()];
    let marks = |c: char| c.is_whitespace() || matches!(c, '#' | '|' | '>' | '*' | '-' | '+' | '`');
    let mut start = span.start + inner.len() - inner.trim_start_matches(marks).len();
    // The sign of a number is no list mark.
    if text[span.start..start].ends_with('-') && text[start..].starts_with(|c: char| c.is_ascii_digit()) {
        start -= 1;
    }
    let end = span.end - (inner.len() - inner.trim_end_matches(|c: char| c.is_whitespace() || c == '|').len());
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|span| &text[span]).collect()
    }

    #[test]
    fn sentences_end_at_marks_and_not_inside_numbers_or_abbreviations() {
        assert_eq!(
            split("It is 3.5 m long. Dr. Who (e.g. the first) saw it! \"Did he?\" Yes.\nAnd then\nmore."),
            ["It is 3.5 m long.", "Dr. Who (e.g. the first) saw it!", "\"Did he?\"", "Yes.", "And then\nmore."]
        );
        assert_eq!(split("the flow separates . the wake is wide ."), ["the flow separates .", "the wake is wide ."]);
    }

    #[test]
    fn headings_list_items_and_table_rows_stand_alone() {
        assert_eq!(
            split("## Limits\n\nAt most ten\nper call.\n- one\n- two\n| a | b |\n| c | d |\n"),
            ["Limits", "At most ten\nper call.", "one", "two", "a | b", "c | d"]
        );
    }

    const FLEMING: &str = "Penicillin was discovered in 1928. The Scottish scientist Alexander Fleming saw that a mould \
                           killed bacteria. He discovered it by chance.";

    fn cite(question: &str, answer: &str) -> Result<Vec<&'static str>, Unfounded> {
        let found = find(&Words::default(), question, answer, &["Nothing here.", FLEMING], 0.75)?;
        assert!(found.iter().all(|evidence| evidence.passage == 1));
        Ok(found.into_iter().map(|evidence| &FLEMING[evidence.span]).collect())
    }

    #[test]
    fn the_sentence_that_carries_the_answer_is_cited() {
        let who = cite("Who discovered penicillin?", "Alexander Fleming, a Scottish scientist");
        assert_eq!(who, Ok(vec!["The Scottish scientist Alexander Fleming saw that a mould killed bacteria."]));
        let two = cite("When was it, and who did it?", "In 1928, by Alexander Fleming.");
        assert_eq!(two.map(|cited| cited.len()), Ok(2));
    }

    #[test]
    fn what_the_passages_do_not_say_is_unfounded() {
        assert_eq!(cite("Who discovered penicillin?", "Marie Curie in Paris"), Err(Unfounded::Unsupported));
        assert_eq!(cite("Who discovered penicillin?", " ... "), Err(Unfounded::Empty));
        assert_eq!(cite("Who discovered penicillin?", "Penicillin was discovered."), Err(Unfounded::RestatesQuestion));
    }

    #[test]
    fn a_number_that_is_nowhere_makes_the_answer_unfounded() {
        let answer = "The Scottish scientist Alexander Fleming saw the mould in 1930";
        assert_eq!(cite("Who discovered penicillin?", answer), Err(Unfounded::Unsupported));
    }

    /// Whether one passage carries an answer to a question that says nothing of it.
    fn carries(passage: &str, answer: &str) -> bool {
        find(&Words::default(), "What about it?", answer, &[passage], 0.75).is_ok()
    }

    #[test]
    fn a_number_is_carried_whole_or_not_at_all() {
        assert!(carries("The rate rose to 3.5 % in May.", "3.5 %"));
        assert!(!carries("The rate rose to 3.5 % in May.", "5.3 %"));
        assert!(carries("The bank gave loans of 12,000 each.", "12000"));
        assert!(!carries("The bank gave 12 loans of 5,000 each.", "12,000"));
        assert!(!carries("The bank gave 12 loans of 000 each.", "12,000"));
        assert!(carries("-5 degrees were measured.", "-5 degrees"));
        assert!(!carries("-5 degrees were measured.", "5 degrees"));
        assert!(!carries("It was 5 degrees.", "-5 degrees"));
    }

    #[test]
    fn a_negation_is_carried_by_a_negation_and_by_nothing_else() {
        assert!(carries("The application is refused.", "is refused"));
        assert!(!carries("The application is refused.", "is not refused"));
        assert!(carries("The application isn't refused.", "is not refused"));
        assert!(!carries("The application is not refused.", "is refused"));
        let find =
            |question, answer| find(&Words::default(), question, answer, &["Small loans are not refused."], 0.75);
        assert!(find("Which loans are not refused?", "small").is_ok(), "the question negates already");
        assert_eq!(find("Which loans are refused?", "small"), Err(Unfounded::Unsupported));
    }

    #[test]
    fn of_two_sentences_with_the_words_the_one_that_agrees_is_cited() {
        let text = "The form is not needed. The form is needed for loans.";
        let found = find(&Words::default(), "What about it?", "form needed", &[text], 0.75).unwrap();
        assert_eq!(&text[found[0].span.clone()], "The form is needed for loans.");
    }

    proptest! {
        #[test]
        fn sentences_are_in_order_apart_and_on_character_borders(text in "[a-zA-Zé .!?\n#|*-]{0,200}") {
            let mut last = 0;
            for span in sentences(&text) {
                prop_assert!(span.start >= last && span.end > span.start && span.end <= text.len());
                prop_assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end));
                last = span.end;
            }
        }
    }
}
