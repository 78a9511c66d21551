//! The chat template of a model directory: a Jinja program from an untrusted file, run within a budget.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::Value;

use crate::error::ModelError;
use crate::files::{CONFIG_BYTES_MAX, read_optional};

/// Template instructions per rendering: thousands of messages, but no endless loop.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a request that callers build by field")]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A parsed template and the tokens that it may ask for.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// `chat_template.jinja` if there is one, else the `chat_template` of `tokenizer_config.json`.
    pub(crate) fn load(dir: &Path, config: &Value) -> Result<Option<Self>, ModelError> {
        let file = dir.join("chat_template.jinja");
        let (path, source) = match read_optional(&file, CONFIG_BYTES_MAX)? {
            Some(bytes) => match String::from_utf8(bytes) {
                Ok(source) => (file, source),
                Err(error) => return Err(ModelError::Malformed { path: file, reason: error.to_string() }),
            },
            None => match configured(config) {
                Some(source) => (dir.join("tokenizer_config.json"), source.to_owned()),
                None => return Ok(None),
            },
        };
        let broken = |error: minijinja::Error| ModelError::Malformed {
            path: path.clone(),
            reason: format!("chat template: {error}"),
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // As Hugging Face renders: block tags on lines of their own leave nothing behind.
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?,
        );
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, source).map_err(broken)?;
        let token = |name: &str| token_text(&config[name]).to_owned();
        Ok(Some(Self { environment, bos_token: token("bos_token"), eos_token: token("eos_token") }))
    }

    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ModelError> {
        let template = |error: minijinja::Error| ModelError::Template { reason: error.to_string() };
        let messages: Vec<minijinja::Value> = messages
            .iter()
            .map(|Message { role, content }| context! { role => role, content => content })
            .collect();
        self.environment
            .get_template(NAME)
            .map_err(template)?
            .render(context! {
                messages,
                add_generation_prompt,
                bos_token => &self.bos_token,
                eos_token => &self.eos_token,
                tools => None::<()>,
            })
            .map_err(template)
    }
}

/// The template itself, or the one named `default` of a list.
fn configured(config: &Value) -> Option<&str> {
    match &config["chat_template"] {
        Value::String(source) => Some(source),
        Value::Array(list) => {
            list.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
        }
        _ => None,
    }
}

/// A token is a string, or an object with its `content`.
fn token_text(token: &Value) -> &str {
    token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default()
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
}
