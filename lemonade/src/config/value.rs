//! Values as people write them: durations, sizes, lists of one, and words in place of a value.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeOwned, Error, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest duration that is accepted: far beyond any use, far below any overflow.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A duration with its unit: `250ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"250ms\", \"2s\" or \"5m\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Period, E> {
                let duration = humantime::parse_duration(text).map_err(|_not_a_duration| {
                    E::custom(format_args!(
                        "{text:?} is not a duration; write a number and a unit: \"250ms\", \"2s\" or \"5m\""
                    ))
                })?;
                if duration > LONGEST {
                    return Err(E::custom(format_args!("{text:?} is too long; write at most \"365days\"")));
                }
                Ok(Period(duration))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Period, E> {
                Err(E::custom(format_args!("{number} has no unit; write \"{number}s\" or \"{number}ms\"")))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration: numbers with units, such as \"250ms\", \"2s\", \"5m\" or \"1h 30m\".",
            "type": "string",
            "pattern": r"^\s*(\d+(\.\d+)?\s*[A-Za-z]+\s*)+$",
        })
    }
}

/// A number of bytes with its unit: `64KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64KiB\" or \"1MiB\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                let size: bytesize::ByteSize = text.parse().map_err(|_not_a_size| {
                    E::custom(format_args!(
                        "{text:?} is not a size; write a number and a unit: \"64KiB\" or \"1MiB\""
                    ))
                })?;
                Ok(Size(size.as_u64()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Size, E> {
                u64::try_from(number)
                    .map(Size)
                    .map_err(|_negative| E::custom(format_args!("{number} is not a size; write \"64KiB\"")))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1024) {
            serializer.collect_str(&format_args!("{}KiB", self.0 / 1024))
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: a number with its unit, such as \"64KiB\" or \"1MiB\", or bytes as a plain number.",
            "anyOf": [
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgG][iI]?)?[bB]?\s*$"},
                {"type": "integer", "minimum": 0},
            ],
        })
    }
}

/// A word that may stand in place of a value.
pub(super) trait Word {
    /// The word.
    const WORD: &'static str;
}

/// `auto`: Lemonade chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Auto;

impl Word for Auto {
    const WORD: &'static str = "auto";
}

/// `off`: not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Off;

impl Word for Off {
    const WORD: &'static str = "off";
}

/// A value, or (`None`) the word that stands for no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Or<W, T>(pub(super) Option<T>, PhantomData<W>);

impl<W, T> Or<W, T> {
    /// The word.
    pub(super) const WORD: Self = Self(None, PhantomData);

    /// A value.
    pub(super) const fn value(value: T) -> Self {
        Self(Some(value), PhantomData)
    }
}

impl<'de, W: Word, T: DeserializeOwned> Deserialize<'de> for Or<W, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<W, T>(PhantomData<(W, T)>);
        impl<W: Word, T: DeserializeOwned> Either<W, T> {
            fn value<'de, E: Error>(from: impl IntoDeserializer<'de, E>) -> Result<Or<W, T>, E> {
                T::deserialize(from.into_deserializer()).map(Or::value).map_err(|error: E| {
                    E::custom(format_args!("{}, or \"{}\"", error.to_string().trim_end(), W::WORD))
                })
            }
        }
        impl<'de, W: Word, T: DeserializeOwned> Visitor<'de> for Either<W, T> {
            type Value = Or<W, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a value or \"{}\"", W::WORD)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Or<W, T>, E> {
                if text == W::WORD { Ok(Or::WORD) } else { Self::value(text) }
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Or<W, T>, E> {
                Self::value(number)
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Or<W, T>, E> {
                Self::value(number)
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Or<W, T>, E> {
                Self::value(value)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Or<W, T>, A::Error> {
                T::deserialize(SeqAccessDeserializer::new(items)).map(Or::value)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<W: Word, T: Serialize> Serialize for Or<W, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(W::WORD),
        }
    }
}

impl<W: Word, T: JsonSchema> JsonSchema for Or<W, T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}_or_{}", T::schema_name(), W::WORD).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"const": W::WORD}, generator.subschema_for::<T>()]})
    }
}

/// One text or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Texts(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Texts {
    fn schema_name() -> Cow<'static, str> {
        "Texts".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ]})
    }
}

/// HTTP status codes: `200-399`, or one of them as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Codes(pub(super) RangeInclusive<u16>);

impl Codes {
    fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        (100 <= from && from <= to && to <= 599).then_some(Self(from..=to))
    }
}

impl<'de> Deserialize<'de> for Codes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range;
        impl Visitor<'_> for Range {
            type Value = Codes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("status codes such as 200 or \"200-399\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Codes, E> {
                Codes::parse(text).ok_or_else(|| {
                    E::custom(format_args!(
                        "{text:?} is no range of status codes from 100 to 599; write 200 or \"200-399\""
                    ))
                })
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Codes, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Range)
    }
}

impl Serialize for Codes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", self.0.start(), self.0.end()))
    }
}

impl JsonSchema for Codes {
    fn schema_name() -> Cow<'static, str> {
        "Codes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "HTTP status codes: one as a number, or a range such as \"200-399\".",
            "anyOf": [
                {"type": "string", "pattern": r"^\s*[1-5]\d\d\s*(-\s*[1-5]\d\d\s*)?$"},
                {"type": "integer", "minimum": 100, "maximum": 599},
            ],
        })
    }
}
