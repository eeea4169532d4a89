//! Roles and their sessions, by ARN, and the names of regions. One rule each, for grant files, the exchange and the printed
//! Deny.

/// A role, as IAM's ARN of it and STS's ARN of its sessions name it. The path is no part of its name: the second lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role<'a> {
    partition: &'a str,
    account: &'a str,
    name: &'a str,
}

impl<'a> Role<'a> {
    /// Reads `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`, 20 to 2,048 characters (STS `AssumeRoleWithWebIdentity`,
    /// `RoleArn`); `None` where the text is anything else. The account may be empty: Ceph RGW writes its roles so.
    pub(crate) fn parse(arn: &'a str) -> Option<Self> {
        let (partition, account, resource) = split(arn, "iam")?;
        let path = resource.strip_prefix("role/")?;
        // IAM takes any visible ASCII in a path, and [\w+=,.@-] in a name: the narrower set serves for both.
        let plain = path.split('/').all(|segment| !segment.is_empty() && segment.bytes().all(in_name));
        let name = path.rsplit('/').next().filter(|name| plain && name.len() <= MAX_NAME)?;
        (20..=2048).contains(&arn.len()).then_some(Self { partition, account, name })
    }

    /// Reads `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`: the role and the session's name, the latter as it
    /// stands there. `None` where the text is anything else.
    pub(crate) fn parse_session(arn: &'a str) -> Option<(Self, &'a str)> {
        let (partition, account, resource) = split(arn, "sts")?;
        let (name, session) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
        let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(in_name);
        fits.then_some((Self { partition, account, name }, session))
    }

    /// Whether `arn` names the session `session_name` of this role.
    pub(crate) fn has_session(&self, arn: &str, session_name: &str) -> bool {
        Role::parse_session(arn) == Some((*self, session_name))
    }

    /// Twelve digits; empty at Ceph RGW.
    pub(crate) fn account(&self) -> &'a str {
        self.account
    }

    /// Its name, without the path.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }
}

/// The longest name of a role or session (IAM `CreateRole`, STS `RoleSessionName`).
const MAX_NAME: usize = 64;
/// The longest name of a region, with room: those of AWS have up to 16 characters.
const MAX_REGION: usize = 32;

/// IAM's `[\w+=,.@-]`. None of them means anything to a shell within quotes, to JSON or to `StringLike`.
pub(crate) fn in_name(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'=' | b',' | b'.' | b'@' | b'_' | b'-')
}

/// Whether `region` can be a region's name: 1 to 32 lower-case letters, digits and inner hyphens. It becomes one label of a
/// host name, `sts.REGION.amazonaws.com` (AWS General Reference, "AWS STS endpoints"; RFC 1123 §2.1).
pub(crate) fn is_region(region: &str) -> bool {
    (1..=MAX_REGION).contains(&region.len())
        && region.bytes().all(in_label)
        && !region.starts_with('-')
        && !region.ends_with('-')
}

fn in_label(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

/// `arn:PARTITION:SERVICE::ACCOUNT:RESOURCE` → partition, account, resource.
fn split<'a>(arn: &'a str, service: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, its_service, "", account, resource] = parts.as_slice() else { return None };
    let account_fits = account.is_empty() || (account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()));
    let fits = *its_service == service && !partition.is_empty() && partition.bytes().all(in_label) && account_fits;
    fits.then_some((*partition, *account, *resource))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_role_arns_of_aws_and_rgw_only() {
        for good in [
            "arn:aws:iam::111122223333:role/a",
            "arn:aws:iam:::role/app",
            "arn:aws-us-gov:iam::111122223333:role/x/y/z@1",
        ] {
            assert!(Role::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "arn:aws:iam::111122223333:user/a",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role/a//b",
            "arn:aws:iam::1111:role/abcdefgh",
            "arn:aws:sts::111122223333:role/a",
            "arn:aws:iam:eu-central-1:111122223333:role/a",
            "arn:aws:iam::111122223333:roles/a",
            "urn:aws:iam::111122223333:role/a",
            "arn:aws:iam::111122223333:role/${param.x}",
            "arn:aws:iam::111122223333:role/*",
            "arn:aws:iam::111122223333:role/a b",
            "arn:AWS:iam::111122223333:role/a",
            &format!("arn:aws:iam::111122223333:role/{}", "a".repeat(65)),
            &format!("arn:aws:iam::111122223333:role/{}", "a/".repeat(1024)),
        ] {
            assert_eq!(Role::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn reads_the_role_out_of_its_arn() {
        let role = Role::parse("arn:aws-cn:iam::111122223333:role/team/a/ledger").unwrap();
        assert_eq!(role, Role { partition: "aws-cn", account: "111122223333", name: "ledger" });
        assert_eq!(Role::parse("arn:aws:iam:::role/app").unwrap(), Role { partition: "aws", account: "", name: "app" });
        for wrong in [
            "",
            "arn:aws:iam::1:role/",
            "arn:aws:iam::111122223333:user/ledger",
            "arn:aws:sts::111122223333:role/ledger",
            "arn:aws:iam:us-east-1:111122223333:role/ledger",
            "arn:aws:iam::111122223333:roles/ledger",
            "urn:aws:iam::111122223333:role/ledger",
        ] {
            assert_eq!(Role::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn knows_its_own_session_and_no_other() {
        let role = Role::parse("arn:aws:iam::111122223333:role/team/ledger").unwrap();
        assert!(role.has_session("arn:aws:sts::111122223333:assumed-role/ledger/smt-1", "smt-1"));
        for foreign in [
            "",
            "arn:aws:sts::111122223334:assumed-role/ledger/smt-1",
            "arn:aws:sts::111122223333:assumed-role/other/smt-1",
            "arn:aws:sts::111122223333:assumed-role/ledger/smt-2",
            "arn:aws:sts::111122223333:assumed-role/ledger/smt-1/x",
            "arn:aws:iam::111122223333:assumed-role/ledger/smt-1",
            "arn:aws-cn:sts::111122223333:assumed-role/ledger/smt-1",
        ] {
            assert!(!role.has_session(foreign, "smt-1"), "{foreign}");
        }
    }

    #[test]
    fn a_region_is_one_short_label_of_a_host_name() {
        for good in ["eu-central-1", "us-iso-east-1", "default", "1", &"a".repeat(32)] {
            assert!(is_region(good), "{good}");
        }
        for bad in ["", "-a", "a-", "EU", "a.b", "a/b", "evil.example/", "é", &"a".repeat(33)] {
            assert!(!is_region(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_arn_reader(text in ".{0,60}", tail in "[a-z:/]{0,30}") {
            let _ = (Role::parse(&text), Role::parse_session(&text));
            if let Some(role) = Role::parse(&format!("arn:aws:iam:{tail}")) {
                prop_assert!(!role.name.is_empty() && !role.name.contains('/'));
            }
        }
    }
}
