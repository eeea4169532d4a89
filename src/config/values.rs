//! How values are written: durations, sizes, addresses. For `#[serde(deserialize_with = "…")]`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A whole number from 1 on.
pub(crate) fn positive<'de, D: Deserializer<'de>, T: TryFrom<u32>>(deserializer: D) -> Result<T, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("at least 1")),
        number => T::try_from(number).map_err(|_| D::Error::custom("too large")),
    }
}

/// A duration such as `30s`, of at least `LEAST_MS` milliseconds.
pub(crate) fn duration<'de, D: Deserializer<'de>, const LEAST_MS: u64>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let duration =
        humantime::parse_duration(&text).map_err(|_| D::Error::custom("write a duration like 30s or 15m"))?;
    let least = Duration::from_millis(LEAST_MS);
    if duration < least {
        return Err(D::Error::custom(format!("at least {}", humantime::format_duration(least))));
    }
    Ok(duration)
}

/// The same for a key without a default.
pub(crate) fn optional_duration<'de, D: Deserializer<'de>, const LEAST_MS: u64>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration::<D, LEAST_MS>(deserializer).map(Some)
}

/// A number of bytes, at least `LEAST`, with `KiB`, `MiB` or `GiB` behind it where that is shorter.
pub(crate) fn size<'de, D: Deserializer<'de>, const LEAST: u64>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
    let size = units.iter().find_map(|(unit, bytes)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*bytes)
    });
    match size {
        None => Err(D::Error::custom("write a size like 64MiB")),
        Some(size) if size < LEAST => Err(D::Error::custom(format!("at least {LEAST}"))),
        Some(size) => Ok(size),
    }
}

/// An IP address and a port.
pub(crate) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom("write an address like 127.0.0.1:9870"))
}

/// The same, on loopback.
pub(crate) fn loopback<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let address = address(deserializer)?;
    if !address.ip().is_loopback() {
        return Err(D::Error::custom("must be a loopback address: credentials are served there in the clear"));
    }
    Ok(address)
}

/// A list of texts, each parsed.
pub(crate) fn each<'de, D, T, C>(deserializer: D) -> Result<C, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
    C: FromIterator<T>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: String| text.parse().map_err(|error| D::Error::custom(format!("{text:?} is invalid: {error}")));
    texts.into_iter().map(parse).collect()
}
