//! What `doctor` looks at: whether Vault can be reached, and is ready to be asked.

use super::fault::{Fault, Step};
use super::{Settings, Vault};
use crate::check::Check;

const REACH: &str = "Vault";

impl Vault {
    /// Asks Vault how it does, which needs no token (API documentation, `/sys/health`).
    pub(super) async fn look(&self) -> Vec<Check> {
        let asked = (Step::Health, "sys/health");
        let answer = self.call(asked, (None, None), None::<&()>, self.settings.timeout).await;
        vec![judge(&self.settings, answer.map(drop))]
    }
}

fn judge(settings: &Settings, answer: Result<(), Fault>) -> Check {
    let address = &settings.address;
    let fault = match answer {
        Ok(()) => return Check::ok(REACH, format!("{address} answers")),
        Err(fault) => fault,
    };
    match fault.status {
        // Standbys: they hand requests on.
        Some(429 | 472 | 473) => Check::ok(REACH, format!("{address} answers, as a standby")),
        Some(501) => Check::fail(REACH, format!("{address} is not initialized"), "run `vault operator init` there"),
        Some(503) => Check::fail(REACH, format!("{address} is sealed"), "unseal it"),
        Some(status) => {
            let detail = format!("{address} answers HTTP {status} when it is asked how it does");
            Check::warn(REACH, detail, "check that vault.address is that of a Vault")
        }
        None => {
            Check::fail(REACH, format!("{address}: {}", fault.detail), "check the network, vault.address and vault.ca")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fault::Remedy;
    use super::*;
    use crate::check::Level;
    use crate::retry::Rate;

    #[test]
    fn a_standby_passes_and_a_sealed_or_missing_vault_fails() {
        let (address, timeout, rate) = ("https://v".to_owned(), Duration::from_secs(1), Rate::default());
        let settings = Settings { address, ca: None, namespace: None, timeout, rate, revocation_rate: rate };
        let level = |answer| judge(&settings, answer).level;
        assert_eq!(level(Ok(())), Level::Ok);
        for (status, expected) in
            [(429, Level::Ok), (473, Level::Ok), (404, Level::Warn), (501, Level::Fail), (503, Level::Fail)]
        {
            assert_eq!(level(Err(Fault::answered(Step::Health, status, None))), expected, "{status}");
        }
        assert_eq!(level(Err(Fault::new(Remedy::Retry, "no connection"))), Level::Fail);
    }
}
