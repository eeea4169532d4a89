//! AWS `AssumeRoleWithWebIdentity`.
