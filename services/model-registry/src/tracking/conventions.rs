//! What other libraries call inputs, outputs, tokens and kinds of spans: OpenInference, the GenAI conventions of
//! OpenTelemetry, Traceloop and Google's ADK, in this order.

use serde_json::{Map, Value, json};

use super::spans::{INPUTS, KIND, OUTPUTS, TOKEN_USAGE};

/// Keys of inputs; `#` stands for a number.
const INPUT_KEYS: [&str; 8] = [
    "input.value",
    "gen_ai.input.messages",
    "gen_ai.tool.call.arguments",
    "traceloop.entity.input",
    "gen_ai.prompt.#.content",
    "gen_ai.completion.#.tool_calls.#.arguments",
    "gcp.vertex.agent.llm_request",
    "gcp.vertex.agent.tool_call_args",
];
const OUTPUT_KEYS: [&str; 7] = [
    "output.value",
    "gen_ai.output.messages",
    "gen_ai.tool.call.result",
    "traceloop.entity.output",
    "gen_ai.completion.#.content",
    "gcp.vertex.agent.llm_response",
    "gcp.vertex.agent.tool_response",
];
/// Keys of input, output and total tokens; a total that is missing is the sum.
const TOKEN_KEYS: [[&str; 3]; 3] = [
    ["llm.token_count.prompt", "llm.token_count.completion", "llm.token_count.total"],
    ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", ""],
    ["gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens", "llm.usage.total_tokens"],
];
/// Keys of kinds, the words used there, and MLflow's for them.
const KINDS: [(&str, &[(&str, &str)]); 3] = [
    (
        "openinference.span.kind",
        &[
            ("TOOL", "TOOL"),
            ("CHAIN", "CHAIN"),
            ("LLM", "LLM"),
            ("RETRIEVER", "RETRIEVER"),
            ("EMBEDDING", "EMBEDDING"),
            ("AGENT", "AGENT"),
            ("RERANKER", "RERANKER"),
            ("UNKNOWN", "UNKNOWN"),
            ("GUARDRAIL", "GUARDRAIL"),
            ("EVALUATOR", "EVALUATOR"),
        ],
    ),
    (
        "gen_ai.operation.name",
        &[
            ("chat", "CHAT_MODEL"),
            ("create_agent", "AGENT"),
            ("embeddings", "EMBEDDING"),
            ("execute_tool", "TOOL"),
            ("generate_content", "LLM"),
            ("invoke_agent", "AGENT"),
            ("text_completion", "LLM"),
            ("response", "LLM"),
        ],
    ),
    (
        "traceloop.span.kind",
        &[("workflow", "WORKFLOW"), ("task", "TASK"), ("agent", "AGENT"), ("tool", "TOOL"), ("unknown", "UNKNOWN")],
    ),
];

/// Adds MLflow's attributes where they are missing and another convention has them.
pub(super) fn translate(attributes: &mut Map<String, Value>) {
    for (ours, theirs) in [(INPUTS, &INPUT_KEYS[..]), (OUTPUTS, &OUTPUT_KEYS[..])] {
        if !attributes.contains_key(ours)
            && let Some(value) = theirs.iter().find_map(|pattern| first(attributes, pattern))
        {
            attributes.insert(ours.to_owned(), value);
        }
    }
    if !attributes.contains_key(TOKEN_USAGE)
        && let Some(usage) = TOKEN_KEYS.iter().find_map(|keys| tokens(attributes, keys))
    {
        attributes.insert(TOKEN_USAGE.to_owned(), usage);
    }
    if !attributes.contains_key(KIND)
        && let Some(kind) = KINDS.iter().find_map(|(key, words)| kind(attributes.get(*key)?.as_str()?, words))
    {
        attributes.insert(KIND.to_owned(), kind.into());
    }
}

fn kind(word: &str, words: &[(&str, &'static str)]) -> Option<&'static str> {
    words.iter().find_map(|(theirs, ours)| (*theirs == word).then_some(*ours))
}

fn first(attributes: &Map<String, Value>, pattern: &str) -> Option<Value> {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    let found = match pattern.contains('#') {
        false => attributes.get(pattern),
        true => attributes.iter().find_map(|(key, value)| matches(pattern, key).then_some(value)),
    };
    found.filter(|value| says_something(value)).cloned()
}

/// Whether `key` has the parts of `pattern`, where `#` stands for digits.
fn matches(pattern: &str, key: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (mut parts, mut keys) = (pattern.split('.'), key.split('.'));
    loop {
        match (parts.next(), keys.next()) {
            (None, None) => return true,
            (Some("#"), Some(key)) if is_number(key) => {}
            (Some(part), Some(key)) if part == key => {}
            _ => return false,
        }
    }
}

fn tokens(attributes: &Map<String, Value>, [input, output, total]: &[&str; 3]) -> Option<Value> {
    let count = |key: &str| attributes.get(key)?.as_i64().filter(|count| *count > 0);
    let (input, output) = (count(input)?, count(output)?);
    let total = count(total).unwrap_or(input.saturating_add(output));
    Some(json!({"input_tokens": input, "output_tokens": output, "total_tokens": total}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(attributes: Value) -> Map<String, Value> {
        let Value::Object(mut attributes) = attributes else { panic!("not an object") };
        translate(&mut attributes);
        attributes
    }

    #[test]
    fn other_conventions_become_mlflow_s() {
        let genai = translated(json!({
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 4,
            "gen_ai.completion.0.content": "hello",
            "gen_ai.prompt.0.content": "hi",
        }));
        assert_eq!(genai[KIND], "CHAT_MODEL");
        assert_eq!(genai[TOKEN_USAGE], json!({"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}));
        assert_eq!((&genai[INPUTS], &genai[OUTPUTS]), (&json!("hi"), &json!("hello")));
        let inference = translated(json!({"openinference.span.kind": "LLM", "input.value": {"q": 1}}));
        assert_eq!((&inference[KIND], &inference[INPUTS]), (&json!("LLM"), &json!({"q": 1})));
    }

    #[test]
    fn what_mlflow_s_own_attributes_say_stands() {
        let kept = translated(json!({"mlflow.spanInputs": "own", "input.value": "other", "mlflow.spanType": "TOOL"}));
        assert_eq!((&kept[INPUTS], &kept[KIND]), (&json!("own"), &json!("TOOL")));
        assert!(!kept.contains_key(OUTPUTS));
    }

    #[test]
    fn a_pattern_matches_numbers_and_nothing_else() {
        assert!(matches("gen_ai.prompt.#.content", "gen_ai.prompt.12.content"));
        for other in
            ["gen_ai.prompt.x.content", "gen_ai.prompt..content", "gen_ai.prompt.1", "gen_ai.prompt.1.content.x"]
        {
            assert!(!matches("gen_ai.prompt.#.content", other), "{other}");
        }
    }
}
