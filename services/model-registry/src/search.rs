//! The language of MLflow's searches: filters, `order_by` clauses and LIKE patterns.
//!
//! Reads what a server of MLflow 3.6 reads. A filter is a row of comparisons of a key with a literal, all of which must
//! hold; the AND between two may be missing or repeated. There is no OR and nothing nests, so one pass over the text
//! suffices. Text stands in single or double quotes and is taken as it is written: there are no escapes, and a text
//! that holds one kind of quote is put in the other. Keys with other than letters, digits and `_` are quoted too, or put
//! in back-ticks. The messages of refusals begin as MLflow's do, because its clients match on them.

mod field;
mod scan;
#[cfg(test)]
mod tests;
pub mod traces;

pub use field::{Attribute, DatasetField, Field};

use crate::error::Error;
use scan::{Clause, Operand, Scanner, unquoted};

/// Longest filter or `order_by` clause, in bytes.
const MAX_TEXT: usize = 100_000;
/// Most comparisons in a filter, and most `order_by` clauses.
const MAX_CLAUSES: usize = 200;
/// Longest pattern of LIKE, in bytes: what SQLite takes.
const MAX_PATTERN: usize = 50_000;
/// Most texts in all the lists of a filter: below what SQLite binds, and what else is bound with them.
const MAX_LISTED: usize = 10_000;
/// Longest message of a refusal, in bytes: it quotes what was refused, and that can be long.
const MAX_MESSAGE: usize = 1_000;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Experiments,
    Runs,
    RegisteredModels,
    ModelVersions,
    LoggedModels,
    EvaluationDatasets,
}

/// One comparison of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub field: Field,
    pub op: Op,
    /// Of the kind that `field` and `op` call for: [`Value::Texts`] with IN, [`Value::Nothing`] with IS NULL.
    pub value: Value,
}

/// How a field is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Like,
    Ilike,
    /// A regular expression matches somewhere in it.
    Rlike,
    In,
    NotIn,
    IsNull,
    IsNotNull,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nothing,
    Text(String),
    Number(f64),
    Integer(i64),
    Texts(Vec<String>),
}

/// One key to sort by.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub field: Field,
    pub ascending: bool,
}

/// Why a filter or an order is refused; the caller answers with `INVALID_PARAMETER_VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Rejected(problem.0)
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T, Problem> {
    let mut message = message.into();
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Err(Problem(message))
}

fn check_size(clauses: usize, longest: usize) -> Result<(), Problem> {
    if longest > MAX_TEXT {
        return refuse(format!("Search clauses must be at most {MAX_TEXT} bytes long, got {longest}"));
    }
    if clauses > MAX_CLAUSES {
        return refuse(format!("A search may have at most {MAX_CLAUSES} clauses, got {clauses}"));
    }
    Ok(())
}

/// Reads a filter. A blank one has no conditions.
pub fn filter(subject: Subject, text: &str) -> Result<Vec<Condition>, Problem> {
    check_size(0, text.len())?;
    let mut scanner = Scanner::new(text);
    let mut clauses = Vec::new();
    loop {
        while scanner.keyword("AND") {}
        if scanner.is_done() {
            break;
        }
        match scanner.clause() {
            Some(clause) => clauses.push(clause),
            None => return refuse(not_a_clause(subject, text, scanner.rest())),
        }
    }
    check_size(clauses.len(), 0)?;
    let conditions = clauses.into_iter().map(|clause| condition(subject, clause)).collect::<Result<Vec<_>, _>>()?;
    check_values(&conditions)?;
    Ok(conditions)
}

/// Checks what the databases could not take.
fn check_values(conditions: &[Condition]) -> Result<(), Problem> {
    let mut listed = 0;
    for Condition { op, value, .. } in conditions {
        match value {
            Value::Text(pattern) if matches!(op, Op::Like | Op::Ilike) && pattern.len() > MAX_PATTERN => {
                return refuse(format!("A pattern may have at most {MAX_PATTERN} bytes, got {}", pattern.len()));
            }
            Value::Texts(texts) => listed += texts.len(),
            _ => {}
        }
    }
    if listed > MAX_LISTED {
        return refuse(format!("The lists of a filter may have at most {MAX_LISTED} values, got {listed}"));
    }
    Ok(())
}

fn not_a_clause(subject: Subject, text: &str, rest: &str) -> String {
    let is_second_statement = rest.strip_prefix(';').is_some_and(|next| !next.trim().is_empty());
    match (subject, is_second_statement) {
        (Subject::LoggedModels, true) => format!("Invalid filter string: '{text}'. Expected a single SQL expression."),
        (Subject::LoggedModels, false) => format!(
            "Invalid filter string: '{text}'. Expected a list of comparisons separated by 'AND' \
             (e.g. 'metrics.loss > 0.1 AND params.lr = 0.01')."
        ),
        (_, true) => {
            format!("Search filter contained multiple expression '{text}'. Provide AND-ed expression list.")
        }
        (_, false) => format!("Invalid clause(s) in filter string: '{rest}'"),
    }
}

fn condition(subject: Subject, clause: Clause<'_>) -> Result<Condition, Problem> {
    let Clause { left, op: sign, right } = clause;
    let is_odd_name = subject == Subject::LoggedModels && matches!(left, Operand::Formula(_));
    if !left.is_identifier() && !is_odd_name {
        return refuse(format!("Invalid comparison clause. Expected 'Identifier' found '{}'", left.raw()));
    }
    let field = field::searched(subject, left.raw())?;
    let op = comparator(subject, &field, sign);
    // MLflow complains about the value before the comparator, except when it searches logged models.
    if subject == Subject::LoggedModels {
        op.clone()?;
    }
    let value = right.map_or(Ok(Value::Nothing), |right| value(subject, &field, sign, right))?;
    Ok(Condition { field, op: op?, value })
}

fn comparator(subject: Subject, field: &Field, sign: &str) -> Result<Op, Problem> {
    let is_number = field.is_number();
    match sign {
        "=" => Ok(Op::Eq),
        "!=" => Ok(Op::Ne),
        "<" if is_number => Ok(Op::Lt),
        "<=" if is_number => Ok(Op::Le),
        ">" if is_number => Ok(Op::Gt),
        ">=" if is_number => Ok(Op::Ge),
        "LIKE" if !is_number => Ok(Op::Like),
        "ILIKE" if !is_number => Ok(Op::Ilike),
        "IN" if takes_lists(subject, field) => Ok(Op::In),
        "NOT IN" if takes_lists(subject, field) && subject != Subject::ModelVersions => Ok(Op::NotIn),
        "IS NULL" if is_optional(subject, field) => Ok(Op::IsNull),
        "IS NOT NULL" if is_optional(subject, field) => Ok(Op::IsNotNull),
        _ => refuse(not_a_comparator(subject, field, sign)),
    }
}

fn takes_lists(subject: Subject, field: &Field) -> bool {
    match subject {
        Subject::Runs => matches!(field, Field::Attribute(Attribute::RunId) | Field::Dataset(_)),
        Subject::ModelVersions => matches!(field, Field::Attribute(Attribute::RunId)),
        Subject::LoggedModels => !field.is_number(),
        Subject::Experiments | Subject::RegisteredModels | Subject::EvaluationDatasets => false,
    }
}

fn is_optional(subject: Subject, field: &Field) -> bool {
    subject == Subject::Runs && matches!(field, Field::Tag(_) | Field::Param(_))
}

fn not_a_comparator(subject: Subject, field: &Field, sign: &str) -> String {
    let registry = matches!(subject, Subject::RegisteredModels | Subject::ModelVersions);
    match field {
        _ if subject == Subject::LoggedModels => format!(
            "Invalid comparison operator for {}.{}: '{sign}'. \
             Expected one of ('=', '!=', 'LIKE', 'ILIKE', 'IN', 'NOT IN').",
            field.entity().plural(),
            field.key()
        ),
        Field::Tag(_) if subject != Subject::Runs => format!("Invalid comparator for tag: {sign}"),
        Field::Attribute(_) if registry && field.is_number() => {
            format!("Invalid comparator for attribute {}: {sign}", field.key())
        }
        Field::Attribute(_) if registry => format!("Invalid comparator for attribute: {sign}"),
        _ if field.is_number() => {
            format!("Invalid comparator '{sign}' not one of '{{'!=', '<', '<=', '=', '>', '>='}}'")
        }
        Field::Tag(_) | Field::Param(_) => {
            format!("Invalid comparator '{sign}' not one of '{{'!=', '=', 'ILIKE', 'LIKE'}}'")
        }
        _ => format!("Invalid comparator '{sign}' not one of '{{'!=', '=', 'ILIKE', 'IN', 'LIKE', 'NOT IN'}}'"),
    }
}

fn value(subject: Subject, field: &Field, sign: &str, operand: Operand<'_>) -> Result<Value, Problem> {
    let raw = operand.raw();
    if field.is_number() {
        // A version may be quoted: MLflow leaves it to the database to read the number.
        let is_version = subject == Subject::ModelVersions;
        return match operand {
            Operand::Number(raw) => number(field, raw),
            Operand::Text(raw) if is_version => number(field, unquoted(raw)),
            Operand::List { .. } if is_version => refuse(ONLY_RUN_ID),
            _ => refuse(not_a_number(field, raw)),
        };
    }
    match operand {
        Operand::List { items, .. } if sign.ends_with("IN") && takes_lists(subject, field) => items.map(Value::Texts),
        Operand::List { .. } if matches!(field, Field::Attribute(_)) && !takes_lists(subject, field) => {
            refuse(ONLY_RUN_ID)
        }
        Operand::Text(raw) => Ok(Value::Text(unquoted(raw).to_owned())),
        Operand::Word(raw) | Operand::Number(raw) | Operand::Formula(raw) if subject == Subject::LoggedModels => {
            Ok(Value::Text(raw.to_owned()))
        }
        Operand::Word(raw) => refuse(format!(
            "Parameter value is either not quoted or unidentified quote types used for string value {raw}. \
             Use either single or double quotes."
        )),
        Operand::Number(_) if subject == Subject::ModelVersions && matches!(field, Field::Attribute(_)) => {
            refuse("Only the '{'version_number'}' attributes support comparison with numeric values.")
        }
        Operand::Number(_) | Operand::Formula(_) | Operand::List { .. } => refuse(match (field, subject) {
            (Field::Attribute(_), Subject::RegisteredModels | Subject::ModelVersions) => format!(
                "Expected a quoted string value or a list of quoted string values for attributes. Got value {raw}"
            ),
            (Field::Attribute(_), _) => format!("Expected a quoted string value for attributes. Got value {raw}"),
            (Field::Dataset(_), _) => {
                format!("Expected a quoted string value for dataset attributes. Got value {raw}")
            }
            _ => {
                let entity = field.entity().singular();
                format!("Expected a quoted string value for {entity} (e.g. 'my-value'). Got value {raw}")
            }
        }),
    }
}

const ONLY_RUN_ID: &str = "Only the 'run_id' attribute supports comparison with a list of quoted string values.";

fn number(field: &Field, raw: &str) -> Result<Value, Problem> {
    let integer = if matches!(field, Field::Metric(_)) { None } else { raw.parse().ok() };
    match (integer, raw.parse()) {
        (Some(integer), _) => Ok(Value::Integer(integer)),
        (None, Ok(number)) => Ok(Value::Number(number)),
        (None, Err(_)) => refuse(not_a_number(field, raw)),
    }
}

fn not_a_number(field: &Field, raw: &str) -> String {
    match field {
        Field::Metric(_) => format!("Expected numeric value type for metric. Found {raw}"),
        _ => format!("Expected numeric value type for numeric attribute: {}. Found {raw}", field.key()),
    }
}

/// Reads `order_by` clauses: a key, then ASC or DESC or nothing.
///
/// For logged models a clause is the `field_name` of an `OrderBy` message and nothing else: the direction is a field of
/// the message, so every order comes out ascending.
pub fn order(subject: Subject, clauses: &[String]) -> Result<Vec<Order>, Problem> {
    check_size(clauses.len(), clauses.iter().map(String::len).max().unwrap_or(0))?;
    let mut orders: Vec<Order> = Vec::with_capacity(clauses.len());
    for clause in clauses {
        let order = order_clause(subject, clause)?;
        let may_repeat = matches!(subject, Subject::Experiments | Subject::LoggedModels);
        if !may_repeat && orders.iter().any(|earlier| earlier.field == order.field) {
            return refuse(format!("`order_by` contains duplicate fields: ['{}']", clauses.join("', '")));
        }
        orders.push(order);
    }
    Ok(orders)
}

fn order_clause(subject: Subject, clause: &str) -> Result<Order, Problem> {
    if subject == Subject::LoggedModels {
        return Ok(Order { field: field::sorted(subject, clause)?, ascending: true });
    }
    let mut scanner = Scanner::new(clause);
    let key = scanner.operand().filter(Operand::is_identifier);
    let direction = ["ASC", "DESC"].into_iter().find(|word| scanner.keyword(word));
    if let Some(key) = &key
        && scanner.is_done()
    {
        return Ok(Order { field: field::sorted(subject, key.raw())?, ascending: direction != Some("DESC") });
    }
    let is_other_word = matches!(scanner.operand(), Some(Operand::Word(_))) && scanner.is_done();
    if key.is_some() && direction.is_none() && is_other_word {
        return refuse(format!("Invalid ordering key in order_by clause '{clause}'."));
    }
    refuse(format!("Invalid order_by clause '{clause}'. Could not be parsed."))
}
