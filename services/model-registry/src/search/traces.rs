//! The same language for traces: their attributes, tags and metadata, their spans and what is thought of them.

use super::scan::{Clause, Operand, Scanner, unquoted};
use super::{Op, Problem, Value, check_size, refuse};
use crate::tracking::traces::{SOURCE_RUN, TRACE_NAME};

/// Longest regular expression once it is compiled, in bytes.
const MAX_PATTERN: usize = 1 << 20;
/// Most items in the lists of a filter.
const MAX_ITEMS: usize = 1_000;

/// One comparison of a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub field: Field,
    pub op: Op,
    /// Of the kind that `field` and `op` call for: [`Value::Texts`] with IN and NOT IN.
    pub value: Value,
}

/// One key to sort by: an attribute, a tag or metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub field: Field,
    pub ascending: bool,
}

/// What of a trace is compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Attribute(Attribute),
    Tag(String),
    Metadata(String),
    /// The run it belongs to, by its own metadata or by a link.
    Run,
    Span(SpanField),
    Feedback(String),
    Expectation(String),
}

/// What a trace itself has, whatever alias it was written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    Id,
    Experiment,
    RequestTime,
    Duration,
    EndTime,
    State,
    ClientRequestId,
}

/// What a trace is searched by that any of its spans has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanField {
    Name,
    Kind,
    Status,
    /// All of its words.
    Content,
    Attribute(String),
}

const ENTITIES: &str = "{'attribute', 'attributes', 'expectation', 'feedback', 'metadata', 'request_metadata', 'span', \
                        'tag', 'tags', 'trace'}";
const KEYS: &str = "{'client_request_id', 'end_time', 'end_time_ms', 'execution_time', 'execution_time_ms', 'name', \
                    'request_id', 'run_id', 'status', 'text', 'timestamp', 'timestamp_ms'}";

fn attribute(key: &str) -> Option<Field> {
    Some(Field::Attribute(match key {
        "request_id" | "trace_id" => Attribute::Id,
        "experiment_id" => Attribute::Experiment,
        "timestamp" | "timestamp_ms" | "request_time" => Attribute::RequestTime,
        "execution_time" | "execution_time_ms" | "execution_duration" => Attribute::Duration,
        "end_time" | "end_time_ms" => Attribute::EndTime,
        "status" | "state" => Attribute::State,
        "client_request_id" => Attribute::ClientRequestId,
        "name" => return Some(Field::Tag(TRACE_NAME.to_owned())),
        "run_id" => return Some(Field::Run),
        "text" => return Some(Field::Span(SpanField::Content)),
        _ => return None,
    }))
}

fn span(key: &str) -> Result<SpanField, Problem> {
    match key {
        "name" => Ok(SpanField::Name),
        "type" => Ok(SpanField::Kind),
        "status" => Ok(SpanField::Status),
        "content" => Ok(SpanField::Content),
        _ => match key.strip_prefix("attributes.").map(bare) {
            Some("") => refuse("Span attribute name cannot be empty after 'attributes.'"),
            Some(name) => Ok(SpanField::Attribute(name.to_owned())),
            None => refuse(format!(
                "Invalid span attribute '{key}'. Supported attributes: name, status, type, attributes.<attribute_name>."
            )),
        },
    }
}

/// A name without the quotes around it.
fn bare(name: &str) -> &str {
    ['`', '"', '\''].iter().find_map(|quote| name.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(name)
}

impl Field {
    fn parse(raw: &str) -> Result<Self, Problem> {
        let (entity, key) = raw.split_once('.').unwrap_or(("attribute", raw));
        let key = bare(key);
        let named = |field: fn(String) -> Self| match key {
            "" => refuse("Assessment field name cannot be empty"),
            key => Ok(field(key.to_owned())),
        };
        match bare(entity) {
            "attribute" | "attributes" | "trace" => attribute(key)
                .ok_or_else(|| Problem(format!("Invalid attribute key '{key}' specified. Valid keys are '{KEYS}'"))),
            "tag" | "tags" => Ok(Self::Tag(key.to_owned())),
            "metadata" | "request_metadata" => match key {
                SOURCE_RUN => Ok(Self::Run),
                key => Ok(Self::Metadata(key.to_owned())),
            },
            "span" => span(key).map(Self::Span),
            "feedback" => named(Self::Feedback),
            "expectation" => named(Self::Expectation),
            other => refuse(format!("Invalid entity type '{other}'. Valid values are {ENTITIES}")),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Attribute(Attribute::RequestTime | Attribute::Duration | Attribute::EndTime))
    }

    /// Whether it is compared with lists.
    fn takes_lists(&self) -> bool {
        match self {
            Self::Attribute(_) => !self.is_number(),
            Self::Tag(key) => key == TRACE_NAME,
            Self::Span(field) => *field != SpanField::Content,
            Self::Metadata(_) | Self::Run | Self::Feedback(_) | Self::Expectation(_) => false,
        }
    }
}

/// Reads a filter. A blank one has no conditions.
pub fn filter(text: &str) -> Result<Vec<Condition>, Problem> {
    check_size(0, text.len())?;
    let mut scanner = Scanner::new(text);
    let mut conditions = Vec::new();
    loop {
        while scanner.keyword("AND") {}
        if scanner.is_done() {
            break;
        }
        let Some(clause) = scanner.clause() else {
            return refuse(format!("Invalid clause(s) in filter string: '{}'", scanner.rest()));
        };
        conditions.push(condition(clause)?);
        check_size(conditions.len(), 0)?;
        let items: usize =
            conditions.iter().map(|one| if let Value::Texts(all) = &one.value { all.len() } else { 0 }).sum();
        if items > MAX_ITEMS {
            return refuse(format!("The lists of a filter may hold at most {MAX_ITEMS} items, got {items}"));
        }
    }
    Ok(conditions)
}

fn condition(clause: Clause<'_>) -> Result<Condition, Problem> {
    let Clause { left, op: sign, right } = clause;
    if !left.is_identifier() {
        return refuse(format!("Invalid comparison clause. Expected 'Identifier' found '{}'", left.raw()));
    }
    let field = Field::parse(left.raw())?;
    let op = comparator(&field, left.raw(), sign)?;
    let value = right.map_or(Ok(Value::Nothing), |right| value(&field, left.raw(), op, right))?;
    if let (Op::Rlike, Value::Text(pattern)) = (op, &value) {
        check_pattern(pattern)?;
    }
    // Whether a run is named by metadata or by a link, it is only ever asked for by its id.
    let field = if field == Field::Run && op != Op::Eq { Field::Metadata(SOURCE_RUN.to_owned()) } else { field };
    Ok(Condition { field, op, value })
}

fn comparator(field: &Field, raw: &str, sign: &str) -> Result<Op, Problem> {
    let is_number = field.is_number();
    let only_like = *field == Field::Span(SpanField::Content);
    match sign {
        "=" if !only_like => Ok(Op::Eq),
        "!=" if !only_like => Ok(Op::Ne),
        "<" if is_number => Ok(Op::Lt),
        "<=" if is_number => Ok(Op::Le),
        ">" if is_number => Ok(Op::Gt),
        ">=" if is_number => Ok(Op::Ge),
        "LIKE" if !is_number => Ok(Op::Like),
        "ILIKE" if !is_number => Ok(Op::Ilike),
        "RLIKE" if !is_number && !only_like => Ok(Op::Rlike),
        "IN" if field.takes_lists() => Ok(Op::In),
        "NOT IN" if field.takes_lists() => Ok(Op::NotIn),
        _ => {
            let valid = match (is_number, only_like, field.takes_lists()) {
                (true, _, _) => "{'!=', '<', '<=', '=', '>', '>='}",
                (_, true, _) => "{'ILIKE', 'LIKE'}",
                (_, _, true) => "{'!=', '=', 'ILIKE', 'IN', 'LIKE', 'NOT IN', 'RLIKE'}",
                _ => "{'!=', '=', 'ILIKE', 'LIKE', 'RLIKE'}",
            };
            refuse(format!("Invalid comparator '{sign}' for '{raw}': not one of '{valid}'"))
        }
    }
}

fn value(field: &Field, raw_key: &str, op: Op, operand: Operand<'_>) -> Result<Value, Problem> {
    let raw = operand.raw();
    let is_list = matches!(op, Op::In | Op::NotIn);
    if field.is_number() {
        let text = if matches!(operand, Operand::Text(_)) { unquoted(raw) } else { raw };
        let integer = text.parse().ok().map(Value::Integer);
        let number = || text.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Number);
        return integer
            .or_else(number)
            .ok_or_else(|| Problem(format!("Expected numeric value type for '{raw_key}'. Found {raw}")));
    }
    match operand {
        Operand::List { items, .. } if is_list => items.map(Value::Texts),
        Operand::Text(raw) if !is_list => Ok(Value::Text(match field {
            Field::Feedback(_) | Field::Expectation(_) => plain(unquoted(raw)),
            _ => unquoted(raw).to_owned(),
        })),
        _ => refuse(format!("Expected a quoted string value for '{raw_key}' (e.g. 'my-value'). Got value {raw}")),
    }
}

/// A text that is itself a text of JSON means what stands in its quotes: that is how judgements are compared.
fn plain(text: &str) -> String {
    serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned())
}

fn check_pattern(pattern: &str) -> Result<(), Problem> {
    match regex::RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build() {
        Ok(_) => Ok(()),
        Err(error) => refuse(format!("Invalid regular expression '{pattern}': {error}")),
    }
}

/// Reads `order_by` clauses: a key, then ASC or DESC or nothing.
pub fn order(clauses: &[String]) -> Result<Vec<Order>, Problem> {
    check_size(clauses.len(), clauses.iter().map(String::len).max().unwrap_or(0))?;
    let mut orders: Vec<Order> = Vec::with_capacity(clauses.len());
    for clause in clauses {
        let mut scanner = Scanner::new(clause);
        let key = scanner.operand().filter(Operand::is_identifier);
        let direction = ["ASC", "DESC"].into_iter().find(|word| scanner.keyword(word));
        let (Some(key), true) = (key, scanner.is_done()) else {
            return refuse(format!("Invalid order_by clause '{clause}'. Could not be parsed."));
        };
        let field = match Field::parse(key.raw())? {
            Field::Run => Field::Metadata(SOURCE_RUN.to_owned()),
            field @ (Field::Attribute(_) | Field::Tag(_) | Field::Metadata(_)) => field,
            Field::Span(_) | Field::Feedback(_) | Field::Expectation(_) => {
                return refuse(format!("Invalid order_by entity in '{clause}': spans and assessments have no order"));
            }
        };
        if orders.iter().any(|earlier| earlier.field == field) {
            return refuse(format!("`order_by` contains duplicate fields: ['{}']", clauses.join("', '")));
        }
        orders.push(Order { field, ascending: direction != Some("DESC") });
    }
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Condition {
        let conditions = filter(text).unwrap();
        assert_eq!(conditions.len(), 1, "{text}");
        conditions.into_iter().next().unwrap()
    }

    fn told(text: &str) -> String {
        filter(text).unwrap_err().0
    }

    #[test]
    fn a_key_may_be_written_in_many_ways() {
        for text in ["timestamp > 5", "timestamp_ms > 5", "attributes.timestamp > 5", "trace.`timestamp_ms` > '5'"] {
            let field = Field::Attribute(Attribute::RequestTime);
            assert_eq!(one(text), Condition { field, op: Op::Gt, value: Value::Integer(5) }, "{text}");
        }
        for text in ["name = 'x'", "trace.name = 'x'", "tags.`mlflow.traceName` = 'x'", "tag.mlflow.traceName = \"x\""]
        {
            assert_eq!(one(text).field, Field::Tag(TRACE_NAME.to_owned()), "{text}");
        }
        for text in ["run_id = 'r'", "metadata.`mlflow.sourceRun` = 'r'", "request_metadata.mlflow.sourceRun = 'r'"] {
            assert_eq!(one(text).field, Field::Run, "{text}");
        }
        assert_eq!(one("run_id != 'r'").field, Field::Metadata(SOURCE_RUN.to_owned()));
        let attribute = |name: &str| Field::Span(SpanField::Attribute(name.to_owned()));
        assert_eq!(one("span.attributes.similarity.threshold LIKE '%0.8%'").field, attribute("similarity.threshold"));
        assert_eq!(one("span.type IN ('LLM', 'TOOL')").value, Value::Texts(vec!["LLM".into(), "TOOL".into()]));
        assert_eq!(one("trace.text ILIKE '%x%'").field, Field::Span(SpanField::Content));
        assert_eq!(one("feedback.good = '\"yes\"'").value, one("feedback.good = 'yes'").value);
    }

    #[test]
    fn a_refusal_names_what_is_wrong() {
        for (text, wanted) in [
            ("invalid.filter = 'test'", "Invalid entity type 'invalid'"),
            ("nothing = 'x'", "Invalid attribute key 'nothing'"),
            ("timestamp LIKE '5'", "Invalid comparator 'LIKE'"),
            ("timestamp > 'soon'", "Expected numeric value"),
            ("tags.a = 5", "Expected a quoted string value"),
            ("tags.a IN ('x')", "Invalid comparator 'IN'"),
            ("span.content = 'x'", "Invalid comparator '='"),
            ("span.duration = '1'", "Invalid span attribute 'duration'"),
            ("name RLIKE '('", "Invalid regular expression '('"),
            ("feedback. = 'x'", "cannot be empty"),
            ("name = 'x' OR name = 'y'", "Invalid clause(s)"),
        ] {
            assert!(told(text).contains(wanted), "{text}: {}", told(text));
        }
    }

    #[test]
    fn an_order_is_by_what_every_trace_has_one_of() {
        let order = |text: &str| order(&[text.to_owned()]);
        let newest = Order { field: Field::Attribute(Attribute::RequestTime), ascending: false };
        assert_eq!(order("timestamp DESC").unwrap(), [newest]);
        assert_eq!(order("tags.team").unwrap()[0].field, Field::Tag("team".into()));
        assert!(order("span.name").unwrap_err().0.contains("Invalid order_by entity"));
        assert!(order("timestamp SIDEWAYS").unwrap_err().0.contains("Could not be parsed"));
    }
}
