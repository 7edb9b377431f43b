//! Searches as SQL. What callers write is bound, never part of the statement.

use sqlx::QueryBuilder;

use super::{Db, MATCHES};
use crate::search::{Attribute, Condition, DatasetField, Field, Op, Order, Value};

/// What escapes in patterns, which know `%` and `_` only: it is doubled wherever a caller wrote it, so it escapes nothing.
const ESCAPE: &str = "\u{1}";

/// The tag of prompts, which are kept as registered models.
const IS_PROMPT: &str = "mlflow.prompt.is_prompt";

/// From so many conditions on tables of keys and values on, each is looked up by itself: PostgreSQL would try the orders
/// in which all of them can be joined, which takes ten seconds for fifty.
pub(super) const JOINED: usize = 6;
/// Keeps a subquery from being joined, and changes nothing else.
pub(super) const APART: &str = " LIMIT 1 OFFSET 0";
/// The same for a list that is compared with, and its end.
pub(super) const LIST_APART: &str = " LIMIT 9223372036854775807 OFFSET 0)";

/// What is searched, in tables.
pub(super) struct Place {
    pub(super) column: fn(Attribute) -> Option<&'static str>,
    /// Tables of keys and values, each with the columns that name their owner.
    pub(super) tags: &'static str,
    pub(super) params: &'static str,
    pub(super) metrics: &'static str,
    pub(super) datasets: &'static str,
    /// How many of the columns' units make a millisecond.
    pub(super) per_millisecond: i64,
}

/// Adds ` AND …` for each condition.
pub(super) fn push_conditions(query: &mut QueryBuilder<Db>, place: &Place, conditions: &[Condition]) {
    let mut subqueries = 0;
    for Condition { field, op, value } in conditions {
        query.push(" AND ");
        subqueries += usize::from(!matches!(field, Field::Attribute(_)));
        let end = if subqueries > JOINED { APART } else { "" };
        match field {
            Field::Attribute(attribute) => {
                let value = scaled(*attribute, value, place.per_millisecond);
                match (place.column)(*attribute) {
                    Some(column) => push_comparison(query, column, *op, &value),
                    None => push_never(query),
                }
            }
            Field::Tag(key) => push_pair(query, place.tags, key, *op, value, end),
            Field::Param(key) => push_pair(query, place.params, key, *op, value, end),
            Field::Metric(key) => push_metric(query, place.metrics, key, *op, value, subqueries > JOINED),
            Field::Dataset(field) => {
                let column = match field {
                    DatasetField::Name => "p.name",
                    DatasetField::Digest => "p.digest",
                    DatasetField::Context => "p.context",
                };
                query.push(format!("EXISTS (SELECT 1 FROM {} AND ", place.datasets));
                push_comparison(query, column, *op, value);
                query.push(format!("{end})"));
            }
        }
    }
}

fn push_never(query: &mut QueryBuilder<Db>) {
    query.push("1 = 0");
}

/// A time is asked for in milliseconds.
fn scaled(attribute: Attribute, value: &Value, per_millisecond: i64) -> Value {
    let is_time = matches!(attribute, Attribute::CreationTimestamp | Attribute::LastUpdatedTimestamp);
    match value {
        Value::Integer(millis) if is_time => Value::Integer(millis.saturating_mul(per_millisecond)),
        Value::Number(millis) if is_time => Value::Number(millis * per_millisecond as f64),
        value => value.clone(),
    }
}

/// `from` ends in the condition that ties it to its owner: `params p WHERE p.run = runs.id`; `end` ends the subquery.
fn push_pair(query: &mut QueryBuilder<Db>, from: &str, key: &str, op: Op, value: &Value, end: &str) {
    if from.is_empty() {
        return push_never(query);
    }
    // To MLflow's clients, what is not marked as a prompt is none.
    let (op, is_negated) = if key == IS_PROMPT && op == Op::Ne { (Op::Eq, true) } else { (op, op == Op::IsNull) };
    let exists = if is_negated { "NOT EXISTS" } else { "EXISTS" };
    query.push(format!("{exists} (SELECT 1 FROM {from} AND p.key = "));
    query.push_bind(key.to_owned());
    if !matches!(op, Op::IsNull | Op::IsNotNull) {
        query.push(" AND ");
        push_comparison(query, "p.value", op, value);
    }
    query.push(format!("{end})"));
}

/// As a list of owners that does not depend on the row at hand: an index of values gives it once, where a look at each row
/// would cost most when few meet the condition. Kept `apart`, it is not joined.
fn push_metric(query: &mut QueryBuilder<Db>, from: &str, key: &str, op: Op, value: &Value, apart: bool) {
    let tie = from.split_once(" WHERE ").and_then(|(table, tie)| Some((table, tie.split_once(" = ")?)));
    let Some((table, (inner, owner))) = tie else { return push_never(query) };
    query.push(format!("{owner} IN (SELECT {inner} FROM {table} WHERE p.key = ")).push_bind(key.to_owned());
    query.push(" AND ");
    push_comparison(query, "p.value", op, value);
    query.push(if apart { LIST_APART } else { ")" });
}

pub(super) fn push_comparison(query: &mut QueryBuilder<Db>, column: &str, op: Op, value: &Value) {
    let sign = match op {
        Op::Eq => "=",
        Op::Ne => "<>",
        Op::Lt => "<",
        Op::Le => "<=",
        Op::Gt => ">",
        Op::Ge => ">=",
        Op::Like | Op::Ilike => "LIKE",
        Op::Rlike => MATCHES,
        Op::In => "IN",
        Op::NotIn => "NOT IN",
        Op::IsNull => {
            query.push(format!("{column} IS NULL"));
            return;
        }
        Op::IsNotNull => {
            query.push(format!("{column} IS NOT NULL"));
            return;
        }
    };
    let is_pattern = matches!(op, Op::Like | Op::Ilike);
    let folded = if op == Op::Ilike { format!("lower({column})") } else { column.to_owned() };
    query.push(format!("{folded} {sign} "));
    match value {
        Value::Text(text) => {
            let text = if is_pattern { text.replace(ESCAPE, &ESCAPE.repeat(2)) } else { text.clone() };
            let (before, after) = if op == Op::Ilike { ("lower(", ")") } else { ("", "") };
            query.push(before).push_bind(text).push(after)
        }
        // Statements are kept by their text, and PostgreSQL keeps the types of their parameters with them: two types may
        // not share a text.
        Value::Number(number) => query.push("CAST(").push_bind(*number).push(" AS DOUBLE PRECISION)"),
        Value::Integer(number) => query.push("CAST(").push_bind(*number).push(" AS BIGINT)"),
        Value::Texts(texts) => {
            let mut list = query.push("(").separated(", ");
            for text in texts {
                list.push_bind(text.clone());
            }
            query.push(")")
        }
        Value::Nothing => query.push("NULL"),
    };
    if is_pattern {
        query.push(format!(" ESCAPE '{ESCAPE}'"));
    }
}

/// Adds ` ORDER BY …`, what has no value last, and `last` to decide between equals.
pub(super) fn push_orders(query: &mut QueryBuilder<Db>, place: &Place, orders: &[Order], last: &str) {
    query.push(" ORDER BY ");
    for Order { field, ascending } in orders {
        let direction = if *ascending { "ASC" } else { "DESC" };
        match field {
            Field::Attribute(attribute) => {
                let Some(column) = (place.column)(*attribute) else { continue };
                // The one that may have no value: asked of the others, it would keep an index from giving the order.
                if *attribute == Attribute::EndTime {
                    query.push(format!("CASE WHEN {column} IS NULL THEN 1 ELSE 0 END, "));
                }
                query.push(format!("{column} {direction}, "));
            }
            Field::Metric(key) => {
                push_of(query, "COALESCE((SELECT p.nan + 0", place.metrics, key, "), 2), ");
                push_of(query, "(SELECT p.value", place.metrics, key, &format!(") {direction}, "));
            }
            Field::Param(key) => push_text_order(query, place.params, key, direction),
            Field::Tag(key) => push_text_order(query, place.tags, key, direction),
            Field::Dataset(_) => {}
        }
    }
    query.push(last);
}

fn push_text_order(query: &mut QueryBuilder<Db>, from: &str, key: &str, direction: &str) {
    push_of(query, "CASE WHEN (SELECT p.value", from, key, ") IS NULL THEN 1 ELSE 0 END, ");
    push_of(query, "(SELECT p.value", from, key, &format!(") {direction}, "));
}

fn push_of(query: &mut QueryBuilder<Db>, select: &str, from: &str, key: &str, end: &str) {
    if from.is_empty() {
        return;
    }
    query.push(format!("{select} FROM {from} AND p.key = ")).push_bind(key.to_owned()).push(end);
}

/// Adds ` LIMIT … OFFSET …` for a page and one more, which tells whether there is a next page.
pub(super) fn push_page(query: &mut QueryBuilder<Db>, offset: u64, limit: u32) {
    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
    query.push(" LIMIT ").push_bind(i64::from(limit) + 1).push(" OFFSET ").push_bind(offset);
}
