//! Cedar: the schema, the guardrails, one slice of rules per scope.
