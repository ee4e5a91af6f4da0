//! [`ChatTemplate`]: how a model wants to be talked to, as its own files say.
//!
//! Chat models are trained on text of a certain form. The form is a Jinja template in `chat_template.jinja` or in
//! `tokenizer_config.json`, rendered here as transformers does
//! (<https://huggingface.co/docs/transformers/chat_templating>). A template is a program from a file: it has fuel, so
//! that it ends.

use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::error::{CliError, Result};

/// Instructions that a template may take; real ones take thousands.
const FUEL: u64 = 10_000_000;

/// A model's chat template and the special tokens that it names.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    place: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of the model in `folder`, if it has one.
    ///
    /// # Errors
    /// [`CliError::Input`] where `tokenizer_config.json` is no JSON.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("tokenizer_config.json");
        let config = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|e| CliError::input(path.display(), e, "fetch tokenizer_config.json again"))?,
            Err(_) => serde_json::Value::Null,
        };
        let file = folder.join("chat_template.jinja");
        let (source, place) = match std::fs::read_to_string(&file) {
            Ok(source) => (Some(source), file),
            Err(_) => (in_config(&config), path),
        };
        let token = |name: &str| text_of(config.get(name)).unwrap_or_default();
        let place = place.display().to_string();
        Ok(source.map(|source| Self { source, place, bos: token("bos_token"), eos: token("eos_token") }))
    }

    /// What the model is given for one message of a user; the model answers next.
    ///
    /// # Errors
    /// [`CliError::Input`] where the template cannot be rendered or refuses.
    pub fn render(&self, message: &str) -> Result<String> {
        self.try_render(message).map_err(|error| {
            let problem = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            CliError::input(
                &self.place,
                format!("its chat template fails: {problem}"),
                "give --raw and write the prompt as the model wants it",
            )
        })
    }

    fn try_render(&self, message: &str) -> std::result::Result<String, Error> {
        let mut jinja = Environment::new();
        jinja.set_trim_blocks(true);
        jinja.set_lstrip_blocks(true);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(unknown_method_callback);
        jinja.add_function("raise_exception", refuse);
        let template = jinja.template_from_str(&self.source)?;
        template.render(context! {
            messages => vec![context! { role => "user", content => message }],
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => Value::from(()),
        })
    }
}

/// What templates call where they do not like what they are given.
fn refuse(reason: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, reason))
}

/// `chat_template` as text, or as a list of named ones of which `default` is taken.
fn in_config(config: &serde_json::Value) -> Option<String> {
    match config.get("chat_template")? {
        serde_json::Value::Array(all) => {
            let default =
                all.iter().find(|one| one.get("name").and_then(|name| name.as_str()) == Some("default"));
            text_of(default?.get("template"))
        }
        one => text_of(Some(one)),
    }
}

/// A token as text, or as an object with its `content`.
fn text_of(value: Option<&serde_json::Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + \
        message['content'].strip() + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    \
        {{- '<|im_start|>assistant\\n' }}\n{%- endif %}";
    const LLAMA2: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] \
        }} [/INST]{% else %}{{ raise_exception('no ' + m['role']) }}{% endif %}{% endfor %}";

    fn rendered(files: &[(&str, String)]) -> Option<Result<String>> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        ChatTemplate::read(folder.path()).unwrap().map(|template| template.render(" Hi "))
    }

    fn in_json(template: serde_json::Value) -> (&'static str, String) {
        let json = serde_json::json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"});
        ("tokenizer_config.json", json.to_string())
    }

    #[test]
    fn templates_are_found_and_rendered() {
        let named =
            serde_json::json!([{"name": "tool", "template": "x"}, {"name": "default", "template": LLAMA2}]);
        let chatml = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        let rows = [
            (vec![], None),
            (vec![in_json(serde_json::Value::Null)], None),
            (vec![in_json(CHATML.into())], Some(chatml)),
            (vec![in_json(named)], Some("<s>[INST]  Hi  [/INST]")),
            (vec![in_json("x".into()), ("chat_template.jinja", CHATML.to_owned())], Some(chatml)),
        ];
        for (files, expected) in rows {
            assert_eq!(rendered(&files).map(Result::unwrap).as_deref(), expected, "{files:?}");
        }
    }

    #[test]
    fn hostile_templates_end_in_an_error() {
        let rows = [
            ("{{ raise_exception('not like this') }}", "not like this"),
            ("{% for a in messages", "--raw"),
            ("{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}", "fuel"),
            ("{{ messages.nothing() }}", "--raw"),
        ];
        for (template, expected) in rows {
            let error = rendered(&[in_json(template.into())]).unwrap().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
