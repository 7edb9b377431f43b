use proptest::prelude::*;

use super::Subject::*;
use super::{Attribute, Condition, DatasetField, Field, MAX_CLAUSES, MAX_TEXT, Op, Order, Subject, Value};

fn attribute(attribute: Attribute) -> Field {
    Field::Attribute(attribute)
}

fn tag(key: &str) -> Field {
    Field::Tag(key.to_owned())
}

fn param(key: &str) -> Field {
    Field::Param(key.to_owned())
}

fn metric(key: &str) -> Field {
    Field::Metric(key.to_owned())
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn texts(values: &[&str]) -> Value {
    Value::Texts(values.iter().map(|&value| value.to_owned()).collect())
}

fn filter(subject: Subject, text: &str) -> Vec<Condition> {
    super::filter(subject, text).unwrap_or_else(|problem| panic!("{subject:?} {text}: {}", problem.0))
}

fn order(subject: Subject, clauses: &[&str]) -> Result<Vec<Order>, String> {
    let clauses: Vec<_> = clauses.iter().map(|&clause| clause.to_owned()).collect();
    super::order(subject, &clauses).map_err(|problem| problem.0)
}

#[test]
fn single_conditions_are_read() {
    use Attribute::*;
    let cases = [
        (Experiments, "name = 'a'", attribute(Name), Op::Eq, text("a")),
        (Experiments, "attribute.`name` != 'a'", attribute(Name), Op::Ne, text("a")),
        (Experiments, "name ilike '%B_'", attribute(Name), Op::Ilike, text("%B_")),
        (Experiments, "creation_time >= 17", attribute(CreationTime), Op::Ge, Value::Integer(17)),
        (Experiments, "last_update_time < 1.5", attribute(LastUpdateTime), Op::Lt, Value::Number(1.5)),
        (Experiments, "tag.\"k e y\" LIKE 'v'", tag("k e y"), Op::Like, text("v")),
        (Experiments, "tags.a.b = 'v'", tag("a.b"), Op::Eq, text("v")),
        (Runs, "metrics.acc > 0.9", metric("acc"), Op::Gt, Value::Number(0.9)),
        (Runs, "metric.`m/1`<=-1e-5", metric("m/1"), Op::Le, Value::Number(-1e-5)),
        (Runs, "metrics.\"m 2\" = .5", metric("m 2"), Op::Eq, Value::Number(0.5)),
        (Runs, "metrics.1m != -2.", metric("1m"), Op::Ne, Value::Number(-2.0)),
        (Runs, "params.lr = '0.01'", param("lr"), Op::Eq, text("0.01")),
        (Runs, "parameters.type = \"it's\"", param("type"), Op::Eq, text("it's")),
        (Runs, "param.a LIKE 'it''s'", param("a"), Op::Like, text("it''s")),
        (Runs, r"`params`.a = 'C:\'", param("a"), Op::Eq, text(r"C:\")),
        (Runs, r"params.a = 'a\'b'", param("a"), Op::Eq, text(r"a\'b")),
        (Runs, "params.a IS NULL", param("a"), Op::IsNull, Value::Nothing),
        (Runs, "tags.a is  not\tnull", tag("a"), Op::IsNotNull, Value::Nothing),
        (Runs, "tags.`mlflow.user` = 'u'", tag("mlflow.user"), Op::Eq, text("u")),
        (Runs, "tags.mlflow.source.name = 'x AND y'", tag("mlflow.source.name"), Op::Eq, text("x AND y")),
        (Runs, "attributes.run_id = 'r'", attribute(RunId), Op::Eq, text("r")),
        (Runs, "run_id IN ('a', \"B\",)", attribute(RunId), Op::In, texts(&["a", "B"])),
        (Runs, "attr.run_id not  in('a')", attribute(RunId), Op::NotIn, texts(&["a"])),
        (Runs, "run.status = 'RUNNING'", attribute(Status), Op::Eq, text("RUNNING")),
        (Runs, "`run name` = 'x'", attribute(RunName), Op::Eq, text("x")),
        (Runs, "\"Run Name\" = 'x'", attribute(RunName), Op::Eq, text("x")),
        (Runs, "Created > 5", attribute(StartTime), Op::Gt, Value::Integer(5)),
        (
            Runs,
            "attribute.end_time = 12345678901234567890",
            attribute(EndTime),
            Op::Eq,
            Value::Number(12345678901234567890.0),
        ),
        (Runs, "dataset.name IN ('d')", Field::Dataset(DatasetField::Name), Op::In, texts(&["d"])),
        (Runs, "datasets.digest LIKE 'd%'", Field::Dataset(DatasetField::Digest), Op::Like, text("d%")),
        (Runs, "dataset.context = 'train'", Field::Dataset(DatasetField::Context), Op::Eq, text("train")),
        (RegisteredModels, "name LIKE '%7'", attribute(Name), Op::Like, text("%7")),
        (RegisteredModels, "attribute.name='CreateRM'", attribute(Name), Op::Eq, text("CreateRM")),
        (
            RegisteredModels,
            "tags.`mlflow.prompt.is_prompt` != 'true'",
            tag("mlflow.prompt.is_prompt"),
            Op::Ne,
            text("true"),
        ),
        (ModelVersions, "name = 'a'", attribute(Name), Op::Eq, text("a")),
        (ModelVersions, "version_number <= 3", attribute(VersionNumber), Op::Le, Value::Integer(3)),
        (ModelVersions, "version_number = '3'", attribute(VersionNumber), Op::Eq, Value::Integer(3)),
        (ModelVersions, "run_id IN ('a','b')", attribute(RunId), Op::In, texts(&["a", "b"])),
        (ModelVersions, "source_path = 'runs:/r/model'", attribute(SourcePath), Op::Eq, text("runs:/r/model")),
        (ModelVersions, "tag.a ILIKE 'x'", tag("a"), Op::Ilike, text("x")),
        (LoggedModels, "name NOT IN ('a', 'b')", attribute(Name), Op::NotIn, texts(&["a", "b"])),
        (LoggedModels, "attributes.source_run_id = 'r'", attribute(SourceRunId), Op::Eq, text("r")),
        (LoggedModels, "creation_time > 1", attribute(CreationTimestamp), Op::Gt, Value::Integer(1)),
        (LoggedModels, "last_updated_timestamp_ms > 1", attribute(LastUpdatedTimestamp), Op::Gt, Value::Integer(1)),
        (LoggedModels, "params.lr = 0.01", param("lr"), Op::Eq, text("0.01")),
        (LoggedModels, "params.lr = adam", param("lr"), Op::Eq, text("adam")),
        (LoggedModels, "tags.`k e y` IN ('v')", tag("k e y"), Op::In, texts(&["v"])),
        (LoggedModels, "metrics.val-loss/mean < 1", metric("val-loss/mean"), Op::Lt, Value::Number(1.0)),
        (LoggedModels, "metrics.acc < 1", metric("acc"), Op::Lt, Value::Number(1.0)),
    ];
    for (subject, written, field, op, value) in cases {
        assert_eq!(filter(subject, written), [Condition { field, op, value }], "{subject:?} {written}");
    }
}

#[test]
fn conditions_are_joined_by_any_and() {
    let expected = [
        Condition { field: metric("a"), op: Op::Gt, value: Value::Number(1.0) },
        Condition { field: param("b"), op: Op::Eq, value: text("x") },
    ];
    for joint in [" AND ", "\nand\t", " AND AND ", " "] {
        assert_eq!(filter(Runs, &format!("metrics.a > 1{joint}params.b = 'x'AND")), expected, "{joint:?}");
    }
    assert_eq!(filter(Runs, ""), []);
    assert_eq!(filter(LoggedModels, " \n"), []);
}

#[test]
fn bad_filters_are_refused_in_the_words_of_mlflow() {
    let cases = [
        (Runs, "acc > 0.94", "Invalid attribute key 'acc' specified"),
        (Runs, "name = 'x'", "Invalid attribute key 'name' specified"),
        (Runs, "p.model = 'LR'", "Invalid entity type 'p'. Valid values are ['metric', 'parameter', 'tag', "),
        (Runs, "\"params\".a = 'x'", "Invalid entity type '\"params\"'"),
        (Runs, "dataset.foo = 'x'", "Invalid dataset key 'foo' specified"),
        (Runs, "metrics.a = LR", "Expected numeric value type for metric. Found LR"),
        (Runs, "metrics.a != metrics.b", "Expected numeric value type for metric. Found metrics.b"),
        (Runs, "metrics.a IN ('1')", "Expected numeric value type for metric. Found ('1')"),
        (Runs, "start_time = '1'", "Expected numeric value type for numeric attribute: start_time. Found '1'"),
        (Runs, "params.a = LR", "value is either not quoted or unidentified quote types used for string value LR"),
        (Runs, "tags.a = `x`", "value is either not quoted or unidentified quote types"),
        (Runs, "params.a = 1", "Expected a quoted string value for parameter (e.g. 'my-value'). Got value 1"),
        (Runs, "tags.a IN ('x')", "Expected a quoted string value for tag (e.g. 'my-value'). Got value ('x')"),
        (Runs, "status = 1", "Expected a quoted string value for attributes. Got value 1"),
        (Runs, "run_id = ('a')", "Expected a quoted string value for attributes. Got value ('a')"),
        (Runs, "dataset.name = 1", "Expected a quoted string value for dataset attributes. Got value 1"),
        (Runs, "status IN ('a')", "Only the 'run_id' attribute supports comparison with a list"),
        (Runs, "run_id IN ()", "expected a non-empty list of string values, but got empty list"),
        (
            Runs,
            "run_id IN (1, 2)",
            "expected string value, punctuation, or whitespace, but got different type in list: (1, 2)",
        ),
        (Runs, "run_id IN ('a',,'b')", "expected a non-empty list of string values, but got ill-formed list"),
        (Runs, "run_id IN (,)", "ill-formed list"),
        (Runs, "run_id IN ('a' 'b')", "ill-formed list"),
        (Runs, "metrics.a LIKE 1", "Invalid comparator 'LIKE' not one of "),
        (Runs, "metrics.a == 1", "Invalid comparator '==' not one of "),
        (Runs, "params.a > 'x'", "Invalid comparator '>' not one of "),
        (Runs, "params.a not like 'x'", "Invalid comparator 'NOT LIKE' not one of "),
        (Runs, "status < 'x'", "Invalid comparator '<' not one of "),
        (Runs, "dataset.name IS NULL", "Invalid comparator 'IS NULL' not one of "),
        (Runs, "1.0 > metrics.acc", "Expected 'Identifier' found '1.0'"),
        (Runs, "'name' = 'x'", "Expected 'Identifier' found ''name''"),
        (Runs, "metrics.a > 1 OR metrics.b > 1", "Invalid clause(s) in filter string: 'OR"),
        (Runs, "(metrics.a > 1)", "Invalid clause(s) in filter string"),
        (Runs, "metrics.a > 1 AND params.a", "Invalid clause(s) in filter string: 'params.a'"),
        (Runs, "params.'acc = LR", "Invalid clause(s) in filter string"),
        (Runs, "params.acc = 'LR", "Invalid clause(s) in filter string"),
        (Runs, "params.acc = LR'", "Invalid clause(s) in filter string"),
        (Runs, "params.acc = \"LR'", "Invalid clause(s) in filter string"),
        (Runs, "tags.acc = = 'LR'", "Invalid clause(s) in filter string"),
        (Runs, "metrics.a-b > 1", "Expected 'Identifier' found 'metrics.a-b'"),
        (Runs, "params.a = 1e+5", "Expected a quoted string value for parameter (e.g. 'my-value'). Got value 1e+5"),
        (Runs, "metrics.a > 5-1", "Invalid clause(s) in filter string: '-1'"),
        (Runs, "metrics.a > 1;", "Invalid clause(s) in filter string: ';'"),
        (Runs, "metrics.a > 1; metrics.b < 1", "Search filter contained multiple expression"),
        (
            Experiments,
            "attr.name = 'a'",
            "Invalid entity type 'attr'. Valid entity types are ('attribute', 'tag', 'tags')",
        ),
        (Experiments, "experiment_id = '1'", "Invalid attribute key 'experiment_id' specified"),
        (Experiments, "name IN ('a')", "Only the 'run_id' attribute supports comparison with a list"),
        (Experiments, "tags.a > 'x'", "Invalid comparator for tag: >"),
        (RegisteredModels, "run_id = 'a'", "Invalid attribute key 'run_id' specified. Valid keys are '{'name'}'"),
        (RegisteredModels, "name > 'a'", "Invalid comparator for attribute: >"),
        (RegisteredModels, "tags.a IS NULL", "Invalid comparator for tag: IS NULL"),
        (
            RegisteredModels,
            "name = 1",
            "Expected a quoted string value or a list of quoted string values for attributes",
        ),
        (ModelVersions, "name = 1", "attributes support comparison with numeric values"),
        (ModelVersions, "version_number LIKE '1'", "Invalid comparator for attribute version_number: LIKE"),
        (ModelVersions, "version_number = 'x'", "Expected numeric value type for numeric attribute: version_number"),
        (ModelVersions, "run_id NOT IN ('a')", "Invalid comparator for attribute: NOT IN"),
        (ModelVersions, "run_id IN (", "Invalid clause(s) in filter string"),
        (ModelVersions, "run_id IN", "Invalid clause(s) in filter string"),
        (ModelVersions, "name LIKE", "Invalid clause(s) in filter string"),
        (LoggedModels, "Foo", "Invalid filter string: 'Foo'. Expected a list of comparisons separated by 'AND'"),
        (LoggedModels, "name = 'a';name = 'b'", "Expected a single SQL expression"),
        (LoggedModels, "foo.bar = 'a'", "Invalid entity type: 'foo'. Expected one of ['attributes', "),
        (LoggedModels, "foo = 'a'", "Invalid attribute key 'foo' specified"),
        (LoggedModels, "name > 'foo'", "Invalid comparison operator for attributes.name: '>'. Expected one of ('=', "),
        (LoggedModels, "metrics.foo LIKE 'x'", "Invalid comparison operator for metrics.foo: 'LIKE'"),
        (LoggedModels, "name = ('a')", "Expected a quoted string value for attributes"),
    ];
    for (subject, written, message) in cases {
        let problem = super::filter(subject, written).expect_err(written).0;
        assert!(problem.contains(message), "{subject:?} {written}: {problem}");
    }
}

#[test]
fn orders_are_read() {
    use Attribute::*;
    let cases = [
        (Experiments, "name DESC", attribute(Name), false),
        (Experiments, "attribute.experiment_id", attribute(ExperimentId), true),
        (Runs, "metrics.`a b`\tdEsc", metric("a b"), false),
        (Runs, "parameters.lr asc", param("lr"), true),
        (Runs, "tag.\"k e y\"", tag("k e y"), true),
        (Runs, "attributes.Created ASC", attribute(StartTime), true),
        (RegisteredModels, "timestamp\nDESC", attribute(LastUpdatedTimestamp), false),
        (RegisteredModels, "creation_timestamp", attribute(CreationTimestamp), true),
        (ModelVersions, "version_number DESC", attribute(VersionNumber), false),
        (LoggedModels, "creation_time", attribute(CreationTimestamp), true),
        (LoggedModels, "metrics.a b DESC", metric("a b DESC"), true),
    ];
    for (subject, clause, field, ascending) in cases {
        assert_eq!(order(subject, &[clause]), Ok(vec![Order { field, ascending }]), "{subject:?} {clause}");
    }
    assert_eq!(order(Runs, &[]), Ok(vec![]));
    assert_eq!(order(Experiments, &["name", "name"]).map(|orders| orders.len()), Ok(2));
}

#[test]
fn bad_orders_are_refused_in_the_words_of_mlflow() {
    let cases: [(Subject, &[&str], &str); 19] = [
        (Runs, &["acc"], "Invalid attribute key 'acc' specified"),
        (Runs, &["`run name`"], "Invalid attribute key 'run name' specified"),
        (Runs, &["m.acc"], "Invalid entity type 'm'"),
        (Runs, &["`metrics.A`"], "Invalid entity type '`metrics'"),
        (Runs, &["`metrics.A"], "Invalid order_by clause '`metrics.A'. Could not be parsed."),
        (Runs, &["dataset.name"], "Invalid identifier type 'dataset'"),
        (Runs, &["metrics.a", "metrics.`a` DESC"], "`order_by` contains duplicate fields"),
        (Runs, &["created", "start_time"], "`order_by` contains duplicate fields"),
        (Runs, &["status foo"], "Invalid ordering key in order_by clause 'status foo'."),
        (Runs, &[""], "Invalid order_by clause ''. Could not be parsed."),
        (Runs, &["status ASC DESC"], "Invalid order_by clause 'status ASC DESC'. Could not be parsed."),
        (Runs, &["status, run_id"], "Invalid order_by clause"),
        (Experiments, &["tags.a"], "Invalid order_by entity: tag"),
        (RegisteredModels, &["description"], "Invalid order by key 'description' specified"),
        (RegisteredModels, &["timestamp", "last_updated_timestamp"], "`order_by` contains duplicate fields"),
        (ModelVersions, &["name ASC", "run_id DESC"], "Invalid attribute key 'run_id' specified"),
        (
            ModelVersions,
            &["last_updated_timestamp DESC blah"],
            "Invalid order_by clause 'last_updated_timestamp DESC blah'",
        ),
        (LoggedModels, &["foo"], "Invalid order by field name: foo"),
        (LoggedModels, &["params.x"], "Invalid order by field name: params.x. Only metrics are supported."),
    ];
    for (subject, clauses, message) in cases {
        let problem = order(subject, clauses).expect_err(message);
        assert!(problem.contains(message), "{subject:?} {clauses:?}: {problem}");
    }
}

#[test]
fn hostile_texts_are_refused_at_once_and_briefly() {
    let pieces = [
        "(",
        "((('a',",
        "'",
        "''",
        "\"",
        "`",
        "a.",
        "NOT ",
        "1.",
        "-",
        "a = ",
        "AND ",
        "params.a = ''",
        "\\'",
        "é",
        "run_id IN ('",
    ];
    for piece in pieces {
        let text = piece.repeat(MAX_TEXT / piece.len());
        for subject in [Experiments, Runs, RegisteredModels, ModelVersions, LoggedModels] {
            if let Err(problem) = super::filter(subject, &text) {
                assert!(problem.0.len() <= super::MAX_MESSAGE, "{piece}");
            }
            let _ = order(subject, &[&text]);
        }
    }
    assert!(super::filter(Runs, &" ".repeat(MAX_TEXT + 1)).is_err());
    assert!(super::filter(Runs, &"metrics.a > 1 ".repeat(MAX_CLAUSES + 1)).is_err());
    assert_eq!(filter(Runs, &"metrics.a > 1 ".repeat(MAX_CLAUSES)).len(), MAX_CLAUSES);
}

fn subjects() -> impl Strategy<Value = Subject> {
    prop::sample::select(vec![Experiments, Runs, RegisteredModels, ModelVersions, LoggedModels])
}

proptest! {
    #[test]
    fn no_text_panics(subject in subjects(), text in ".*", shaped in r#"([ 'a"`.(),=<!;é0-9-]|\\| AND | IN | NOT | IS NULL|params\.|name|run_id){0,20}"#) {
        for text in [text, shaped] {
            let _ = super::filter(subject, &text);
            let _ = super::order(subject, &[text]);
        }
    }

    #[test]
    fn texts_come_back_as_they_were_quoted(subject in subjects(), value in r#"([^'"]|[%_;()`\\]|--|/\*| AND |日)*"#, inner in r#"[a-z%;]*"#) {
        let value = format!("{value}{inner}");
        for (quote, other) in [('\'', '"'), ('"', '\'')] {
            let value = format!("{value}{other}{inner}");
            let conditions = super::filter(subject, &format!("name = {quote}{value}{quote} AND tags.`{inner}` != {quote}{inner}{quote}"));
            match (subject, conditions) {
                (Runs, conditions) => prop_assert!(conditions.is_err()), // runs have no name
                (_, conditions) => prop_assert_eq!(conditions, Ok(vec![
                    Condition { field: attribute(Attribute::Name), op: Op::Eq, value: text(&value) },
                    Condition { field: tag(&inner), op: Op::Ne, value: text(&inner) },
                ])),
            }
        }
    }
}
