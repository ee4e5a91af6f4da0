//! Fields of a `config.json`, each checked.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The most that any width may be, and the most layers: far above any model, and far from 64 bits in products.
const MOST: u64 = 1 << 20;
const MOST_LAYERS: u64 = 4096;

/// The fields of a file, with the file's name.
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) place: &'a str,
}

impl Fields<'_> {
    pub(super) fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::Config { place: self.place.to_owned(), problem: problem.into() }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn whole(&self, name: &str, most: u64, otherwise: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(name) else {
            return otherwise.ok_or_else(|| self.wrong(format!("{name} is missing")));
        };
        let number = value.as_u64().filter(|number| (1..=most).contains(number));
        number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
            self.wrong(format!("{name} is {value}, expected is a whole number of 1 to {most}"))
        })
    }

    pub(super) fn size(&self, name: &str) -> Result<usize> {
        self.whole(name, MOST, None)
    }

    pub(super) fn size_or(&self, name: &str, otherwise: usize) -> Result<usize> {
        self.whole(name, MOST, Some(otherwise))
    }

    pub(super) fn layers(&self, name: &str) -> Result<usize> {
        self.whole(name, MOST_LAYERS, None)
    }

    pub(super) fn layers_or(&self, name: &str, otherwise: usize) -> Result<usize> {
        self.whole(name, MOST_LAYERS, Some(otherwise))
    }

    pub(super) fn vocab(&self) -> Result<usize> {
        self.whole("vocab_size", MOST << 4, None)
    }

    /// A number that may be left out.
    pub(super) fn optional(&self, name: &str) -> Result<Option<usize>> {
        self.get(name).is_some().then(|| self.whole(name, 1 << 32, None)).transpose()
    }

    pub(super) fn flag(&self, name: &str, otherwise: bool) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    pub(super) fn fraction(&self, name: &str, otherwise: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(otherwise),
            Some(value) => value
                .as_f64()
                .filter(|number| *number > 0.0 && *number <= 1.0)
                .ok_or_else(|| self.wrong(format!("{name} is {value}, expected is a number of 0 to 1"))),
        }
    }

    pub(super) fn quotient(&self, name: &str, value: usize, of: &str, divisor: usize) -> Result<usize> {
        if value.is_multiple_of(divisor.max(1)) {
            return Ok(value / divisor.max(1));
        }
        Err(self.wrong(format!("{name} is {value}, which is no multiple of {of}, {divisor}")))
    }
}
