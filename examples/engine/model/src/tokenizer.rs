//! Text to token ids and back, and chat messages to text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chat::{ChatTemplate, Message};
use crate::error::ModelError;
use crate::files::{CONFIG_BYTES_MAX, TOKENIZER_BYTES_MAX, parse_json, read_optional, read_required};

/// A bare UTF-8 character is at most 4 bytes, so at most 3 are pending, each shown as one replacement character.
const PENDING_MAX: usize = 3;
/// Tokens after which a detokenizer forgets its past, and how many it then keeps as context.
const WINDOW_MAX: usize = 32;
const WINDOW_KEPT: usize = 8;

/// The tokenizer of a model directory, with its chat template if it has one.
#[derive(Clone)]
pub struct Tokenizer {
    dir: PathBuf,
    inner: Arc<tokenizers::Tokenizer>,
    chat: Option<Arc<ChatTemplate>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` and, where they exist, `tokenizer_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Malformed`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let bytes = read_required(&path, TOKENIZER_BYTES_MAX)?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| ModelError::Malformed { path: path.clone(), reason: error.to_string() })?;
        let path = dir.join("tokenizer_config.json");
        let config = match read_optional(&path, CONFIG_BYTES_MAX)? {
            Some(bytes) => parse_json(&path, &bytes)?,
            None => serde_json::Value::Null,
        };
        let chat = ChatTemplate::load(dir, &config)?.map(Arc::new);
        Ok(Self { dir: dir.to_owned(), inner: Arc::new(inner), chat })
    }

    /// Number of ids, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, special ones included.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id as the vocabulary spells it, or `None` for an id without one.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Encodes text. `add_special` adds what the tokenizer puts around a text (here: the beginning of it); a text
    /// from [`Self::apply_chat`] has that already. Special tokens written out in the text are recognised.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`] if the tokenizer has no token for some part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|error| tokenize(&*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes ids, leaving out special tokens. Unknown ids are skipped, broken UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`] if the decoder of the directory fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner.decode(ids, true).map_err(|error| tokenize(&*error))
    }

    /// An incremental decoder of one answer.
    #[must_use]
    pub fn decode_stream(&self) -> Detokenizer {
        Detokenizer { tokenizer: self.clone(), window: Vec::new(), emitted: 0 }
    }

    /// Renders chat messages as the text of a prompt, special tokens written out; encode it without `add_special`.
    ///
    /// # Errors
    /// [`ModelError::NoChatTemplate`] if the directory has none, [`ModelError::Template`] if it rejects the messages.
    pub fn apply_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ModelError> {
        match &self.chat {
            Some(chat) => chat.render(messages, add_generation_prompt),
            None => Err(ModelError::NoChatTemplate { path: self.dir.clone() }),
        }
    }
}

fn tokenize(error: &dyn std::error::Error) -> ModelError {
    ModelError::Tokenize { reason: error.to_string() }
}

/// Turns the tokens of one answer into text, piece by piece, never emitting part of a character.
///
/// The pieces and [`Detokenizer::finish`], joined, are the text of the answer. Cost: decodes a window of at most
/// 32 tokens per push.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The latest tokens, old enough ones forgotten.
    window: Vec<u32>,
    /// How much of the window's text was handed out, in bytes.
    emitted: usize,
}

impl Detokenizer {
    /// Adds a token and returns the text that became certain; often one word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.text();
        let certain = certain(&text);
        // Where a decoder rewrites what it said before, silence is better than repeating or splitting a character.
        let piece = certain.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(certain.len());
        if self.window.len() == WINDOW_MAX {
            // The kept tokens may begin within a character, so count what is held back from the end.
            let held_back = text.len().saturating_sub(self.emitted);
            self.window.drain(..WINDOW_MAX - WINDOW_KEPT);
            self.emitted = self.text().len().saturating_sub(held_back);
        }
        piece
    }

    /// The rest: what was held back because more bytes might have completed it.
    #[must_use]
    pub fn finish(self) -> String {
        self.text().get(self.emitted..).unwrap_or_default().to_owned()
    }

    fn text(&self) -> String {
        // A decoder that fails on a token has no text for it.
        self.tokenizer.decode(&self.window).unwrap_or_default()
    }
}

/// The text without replacement characters at its end that further bytes could still turn into something else.
fn certain(text: &str) -> &str {
    let mut rest = text;
    for _ in 0..PENDING_MAX {
        match rest.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    rest
}
