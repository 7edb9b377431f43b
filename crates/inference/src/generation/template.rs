//! Chat templates: the Jinja program in the file that writes messages as a prompt.

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs};

/// Instructions a template may take: thousands of messages.
const FUEL: u64 = 5_000_000;
/// The most bytes of a prompt that a template makes.
const MAX_PROMPT: usize = 16 << 20;
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// As the template knows it: `system`, `user`, `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    fn value(&self) -> Value {
        context! { role => &self.role, content => &self.content }
    }
}

/// A compiled template.
pub(super) struct Template(Environment<'static>);

impl Template {
    pub(super) fn new(source: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        // As transformers runs them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |problem: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        Ok(Self(environment))
    }

    /// The prompt of a conversation, after which the assistant speaks.
    pub(super) fn render(&self, messages: &[Message], bos: &str, eos: &str) -> Result<String, String> {
        let template = self.0.get_template(NAME).map_err(|error| error.to_string())?;
        let values = context! {
            messages => messages.iter().map(Message::value).collect::<Vec<_>>(),
            bos_token => bos,
            eos_token => eos,
            add_generation_prompt => true,
        };
        let mut prompt = Bounded(Vec::new());
        template.render_captured_to(values, &mut prompt).map_err(|error| {
            // A template's own complaint is its detail; other kinds are told apart by their name.
            error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
        })?;
        String::from_utf8(prompt.0).map_err(|error| error.to_string())
    }
}

/// What a template wrote, up to `MAX_PROMPT` bytes.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT {
            return Err(std::io::Error::other(format!("the prompt has more than {MAX_PROMPT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As the templates expect it: not escaped for HTML, unlike minijinja's own.
fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Others exist, as `ensure_ascii`; what they ask for is how it is.
    let text = match indent {
        Some(_) => serde_json::to_string_pretty(&value),
        None => serde_json::to_string(&value),
    };
    text.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn templates_write_conversations_as_transformers_does() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {% if message['role'].upper() == 'USER' %}\n\
                      <u>{{ message.content | trim }}</u>\n    {%- else %}<o>{{ message['content'] }}</o>{% endif %}\n\
                      {% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
        let template = Template::new(source.to_owned()).unwrap();
        let prompt = template.render(&[message("user", " <hi> "), message("system", "x")], "<s>", "</s>").unwrap();
        assert_eq!(prompt, "<s><u><hi></u><o>x</o><a>");
    }

    #[test]
    fn a_template_s_complaint_is_the_error() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}";
        let template = Template::new(source.to_owned()).unwrap();
        assert_eq!(template.render(&[message("system", "x")], "", "").unwrap_err(), "the user speaks first");
        assert!(Template::new("{% for %}".to_owned()).is_err());
    }

    #[test]
    fn a_template_without_end_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(Template::new(source.to_owned()).unwrap().render(&[], "", "").is_err());
    }

    #[test]
    fn tojson_writes_plain_json() {
        let template = Template::new("{{ messages | tojson(ensure_ascii=False) }}".to_owned()).unwrap();
        let prompt = template.render(&[message("user", "<é>")], "", "").unwrap();
        assert_eq!(prompt, r#"[{"role":"user","content":"<é>"}]"#);
    }
}
