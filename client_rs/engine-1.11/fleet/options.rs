//! The command line: a command, and then pairs of a name and a value.

use std::collections::HashMap;
use std::path::Path;

use crate::Failure;

pub struct Options {
    pub command: String,
    values: HashMap<String, String>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let command = arguments.next().unwrap_or_default();
        let mut values = HashMap::new();
        while let Some(name) = arguments.next() {
            let value = arguments.next();
            let Some((name, value)) = name.strip_prefix("--").zip(value) else {
                return Err(format!("{name:?} is no --NAME VALUE").into());
            };
            values.insert(name.to_string(), value);
        }
        Ok(Self { command, values })
    }

    /// The value of an option that must be given.
    pub fn text(&self, name: &str) -> Result<&str, Failure> {
        let value = self.values.get(name).map(String::as_str);
        value.ok_or_else(|| format!("--{name} is missing").into())
    }

    /// The value of an option that is a number, or its default.
    pub fn number(&self, name: &str, default: usize) -> Result<usize, Failure> {
        let value = self.values.get(name).map(|value| value.parse());
        Ok(value.transpose()?.unwrap_or(default))
    }

    /// The file to which the executions of steps are written.
    pub fn journal(&self) -> Result<&Path, Failure> {
        self.text("journal").map(Path::new)
    }
}
