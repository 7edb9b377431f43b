//! What a query may cost, known before anything of it is done. The messages are those MLflow's clients know.

use async_graphql::parser::types::{ExecutableDocument, Selection};

/// Longest query, in bytes.
pub(super) const MAX_BYTES: usize = 100_000;
const MAX_DEPTH: u32 = 10;
const MAX_SELECTIONS: u32 = 1_000;
const MAX_ROOT_FIELDS: u32 = 10;
const MAX_ALIASES: u32 = 10;

/// Checks every operation of a document. Fragments count where they are used, so that none can multiply another; their
/// depth counts from where they are written.
pub(super) fn check(document: &ExecutableDocument) -> Result<(), String> {
    let (mut root_fields, mut most_aliases, mut selections) = (0, 0, 0);
    for (_, operation) in document.operations.iter() {
        let mut waiting = vec![(&operation.node.selection_set.node, 1, true)];
        while let Some((set, depth, is_root)) = waiting.pop() {
            if depth > MAX_DEPTH {
                return Err(format!("Query exceeds maximum depth of {MAX_DEPTH}"));
            }
            let mut aliases = 0;
            for selection in &set.items {
                selections += 1;
                if selections > MAX_SELECTIONS {
                    return Err(format!("Query exceeds maximum total selections of {MAX_SELECTIONS}"));
                }
                match &selection.node {
                    Selection::Field(field) => {
                        root_fields += u32::from(is_root);
                        aliases += u32::from(field.node.alias.is_some());
                        if !field.node.selection_set.node.items.is_empty() {
                            waiting.push((&field.node.selection_set.node, depth + 1, false));
                        }
                    }
                    Selection::InlineFragment(fragment) => {
                        waiting.push((&fragment.node.selection_set.node, depth, is_root));
                    }
                    Selection::FragmentSpread(spread) => {
                        if let Some(fragment) = document.fragments.get(&spread.node.fragment_name.node) {
                            waiting.push((&fragment.node.selection_set.node, 1, is_root));
                        }
                    }
                }
            }
            most_aliases = most_aliases.max(aliases);
        }
    }
    for (count, max, what) in [(root_fields, MAX_ROOT_FIELDS, "root fields"), (most_aliases, MAX_ALIASES, "aliases")] {
        if count > max {
            return Err(format!("GraphQL queries should have at most {max} {what}, got {count} {what}."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    fn told(query: &str) -> Result<(), String> {
        check(&parse_query(query).unwrap())
    }

    fn refusal(query: &str) -> String {
        told(query).unwrap_err()
    }

    #[test]
    fn a_query_is_refused_for_what_it_would_cost() {
        let roots = |count: usize| format!("{{ {} }}", "test { output } ".repeat(count));
        assert_eq!(told(&roots(10)), Ok(()));
        assert!(refusal(&roots(11)).starts_with("GraphQL queries should have at most 10 root fields, got 11"));
        let aliased = |count: usize| (0..count).map(|n| format!("a{n}: b ")).collect::<String>();
        assert_eq!(told(&format!("{{ a {{ {} }} }}", aliased(10))), Ok(()));
        assert!(refusal(&format!("{{ a {{ {} }} }}", aliased(11))).contains("at most 10 aliases, got 11"));
        let deep = |depth: usize| format!("{{ {} b {} }}", "a { ".repeat(depth - 1), "}".repeat(depth - 1));
        assert_eq!(told(&deep(10)), Ok(()));
        assert!(refusal(&deep(11)).contains("maximum depth of 10"));
        assert!(refusal(&format!("{{ a {{ {} }} }}", "b ".repeat(1_000))).contains("maximum total selections of 1000"));
    }

    #[test]
    fn a_fragment_counts_wherever_it_is_used() {
        assert!(
            refusal(&format!("{{ {} }} fragment F on Query {{ test }}", "...F ".repeat(11)))
                .contains("got 11 root fields")
        );
        let doubled: String =
            (0..30).map(|n| format!("fragment F{n} on T {{ ...F{} ...F{} }} ", n + 1, n + 1)).collect();
        assert!(refusal(&format!("{{ a {{ ...F0 }} }} {doubled} fragment F30 on T {{ b }}")).contains("selections"));
        assert!(refusal("{ a { ...F } } fragment F on T { b ...F }").contains("selections"), "a circle has an end");
    }
}
