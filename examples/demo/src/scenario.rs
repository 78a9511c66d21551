//! The prompts: what a small service is asked all day.

use clap::ValueEnum;
use serde_json::{Value, json};

/// How many tokens the long prompt has, about.
pub(crate) const LONG_TOKENS: usize = 1500;
/// The paragraphs that long prompts are made of.
const STORY: [&str; 6] = [
    "The river comes down from the hills and runs past the old mill. A young engineer measured the height of the \
     water and the width of the channel, and wrote the numbers in a small blue book.",
    "The miller opens the gate in the morning. The water fills the channel, the wheel begins to turn, and the stones \
     make the sound that every child in the town knows. When the rain is heavy, the rest of the water goes over the \
     weir.",
    "At the market the farmers talk about the weather, and the baker talks about time and patience. The teacher asks \
     them how much power the new machine will give, and how long it will last.",
    "The work went on through the summer and the autumn. Stones were carried by hand, iron was carried by train, and \
     every bolt was checked twice. At night a lamp was burning in the window of the engineer.",
    "In the winter the lake was covered with ice and the wheel stood still. The people of both towns sat by the fire, \
     drank hot tea, and made a plan to send power over the hill with a long wire.",
    "One evening a light was seen on the other side of the valley. It was small and yellow, and nobody in the street \
     said a word until someone began to sing.",
];

/// Prompts that belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Group {
    /// One short prompt
    Short,
    /// One short prompt, sampled with a seed, answered at once instead of as a stream
    Sampled,
    /// One prompt of about 1500 tokens
    Long,
    /// Two prompts that begin with the same document
    Prefix,
    /// A chat with two turns
    Chat,
}

/// All of them, in the order of the demo.
pub(crate) const GROUPS: [Group; 5] = [Group::Short, Group::Sampled, Group::Long, Group::Prefix, Group::Chat];

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Input {
    /// A text to continue.
    Text(String),
    /// A message of a user; the turns before it are added when it is sent.
    Turn(&'static str),
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Prompt {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// What is asked.
    pub(crate) input: Input,
    /// The seed of a sampled answer; without one the answer is greedy.
    pub(crate) seed: Option<u32>,
    /// The answer comes token by token.
    pub(crate) stream: bool,
}

impl Prompt {
    fn text(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, input: Input::Text(text.into()), seed: None, stream: true }
    }

    fn turn(name: &'static str, text: &'static str) -> Self {
        Self { name, input: Input::Turn(text), seed: Some(11), stream: true }
    }

    /// How its tokens are chosen, in a few words.
    pub(crate) fn mode(&self) -> String {
        self.seed.map_or_else(|| "greedy".to_owned(), |seed| format!("seed {seed}"))
    }
}

/// The prompts of `groups`. `story_tokens` is the length of [`story`]`(1)`, which the tokenizer decides.
pub(crate) fn prompts(groups: &[Group], story_tokens: usize) -> Vec<Prompt> {
    groups.iter().flat_map(|&group| of_group(group, story_tokens)).collect()
}

fn of_group(group: Group, story_tokens: usize) -> Vec<Prompt> {
    match group {
        Group::Short => vec![Prompt::text("short", "The engineer opened the gate, and")],
        Group::Sampled => {
            let prompt = Prompt::text("sampled, at once", "What is a good machine? It");
            vec![Prompt { seed: Some(7), stream: false, ..prompt }]
        }
        Group::Long => {
            let story = story((LONG_TOKENS / story_tokens.max(1)).max(1));
            vec![Prompt::text("long", format!("{story} In the spring"))]
        }
        Group::Prefix => {
            // Another beginning than the long prompt's, whose blocks would serve for this one too.
            let document = format!("A stranger wrote this down. {}", story(1));
            vec![
                Prompt::text("document", format!("{document} The teacher said that")),
                Prompt::text("same document", format!("{document} Then the children sent their boats")),
            ]
        }
        Group::Chat => vec![
            Prompt::turn("chat, turn 1", "What is a good town?"),
            Prompt::turn("chat, turn 2", "And how does the river know?"),
        ],
    }
}

/// The story, told `times` times with a new beginning for each chapter.
pub(crate) fn story(times: usize) -> String {
    let chapter = |number: usize| format!("This is chapter {number}. {}", STORY.join(" "));
    (1..=times).map(chapter).collect::<Vec<_>>().join(" ")
}

/// A chat as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct Chat {
    turns: Vec<Value>,
}

impl Chat {
    /// Path and body of the request for `prompt`. A turn becomes part of the chat.
    pub(crate) fn request(&mut self, prompt: &Prompt, max_tokens: usize) -> (&'static str, Value) {
        let mut body = json!({"max_tokens": max_tokens, "return_token_ids": true});
        match prompt.seed {
            None => body["temperature"] = json!(0),
            Some(seed) => {
                body["temperature"] = json!(0.8);
                body["top_p"] = json!(0.95);
                body["seed"] = json!(seed);
            }
        }
        match &prompt.input {
            Input::Text(text) => {
                body["prompt"] = json!(text);
                ("/v1/completions", body)
            }
            Input::Turn(text) => {
                if self.turns.is_empty() {
                    self.add("system", "You answer like an old miller: in a few simple words.");
                }
                self.add("user", text);
                body["messages"] = json!(self.turns);
                ("/v1/chat/completions", body)
            }
        }
    }

    /// Adds what the model answered.
    pub(crate) fn answered(&mut self, prompt: &Prompt, answer: &str) {
        if matches!(prompt.input, Input::Turn(_)) {
            self.add("assistant", answer);
        }
    }

    fn add(&mut self, role: &str, content: &str) {
        self.turns.push(json!({"role": role, "content": content}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_turn_carries_the_first_and_its_answer() {
        let turns = prompts(&[Group::Chat], 1);
        let mut chat = Chat::default();
        chat.request(&turns[0], 8);
        chat.answered(&turns[0], "A quiet one.");
        let (path, body) = chat.request(&turns[1], 8);
        assert_eq!(path, "/v1/chat/completions");
        let roles: Vec<_> =
            body["messages"].as_array().unwrap().iter().map(|turn| turn["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!(body["messages"][2]["content"], "A quiet one.");
    }

    #[test]
    fn both_ways_of_choosing_tokens_and_of_answering_are_there() {
        let all = prompts(&GROUPS, 300);
        assert!(
            all.iter().any(|prompt| prompt.seed.is_none()) && all.iter().any(|prompt| prompt.seed.is_some())
        );
        assert!(all.iter().any(|prompt| prompt.stream) && all.iter().any(|prompt| !prompt.stream));
        let (Input::Text(first), Input::Text(second)) = (&all[3].input, &all[4].input) else {
            panic!("documents are texts");
        };
        let shared = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
        assert!(shared >= story(1).len() && first != second);
    }
}
