//! authentication.k8s.io and authorization.k8s.io: questions that are answered, never stored.

use super::{REVIEW_VERBS, Resource};
use crate::auth::review::{AUTHENTICATION, AUTHORIZATION};

/// Both groups, `v1`.
pub const ALL: &[&Resource] = &[
    &SELF_SUBJECT_REVIEW,
    &TOKEN_REVIEW,
    &LOCAL_SUBJECT_ACCESS_REVIEW,
    &SELF_SUBJECT_ACCESS_REVIEW,
    &SELF_SUBJECT_RULES_REVIEW,
    &SUBJECT_ACCESS_REVIEW,
];

const fn cluster(
    key: &'static str,
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource {
        verbs: REVIEW_VERBS,
        ..Resource::cluster(key, group, kind, plural, singular)
    }
}

/// Who am I?
pub static SELF_SUBJECT_REVIEW: Resource = cluster(
    "selfsubjectreviews.authentication.k8s.io",
    AUTHENTICATION,
    "SelfSubjectReview",
    "selfsubjectreviews",
    "selfsubjectreview",
);

/// Whose token is this?
pub static TOKEN_REVIEW: Resource = cluster(
    "tokenreviews.authentication.k8s.io",
    AUTHENTICATION,
    "TokenReview",
    "tokenreviews",
    "tokenreview",
);

/// May they, in this namespace?
pub static LOCAL_SUBJECT_ACCESS_REVIEW: Resource = Resource {
    verbs: REVIEW_VERBS,
    ..Resource::namespaced(
        "localsubjectaccessreviews.authorization.k8s.io",
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
    )
};

/// May I?
pub static SELF_SUBJECT_ACCESS_REVIEW: Resource = cluster(
    "selfsubjectaccessreviews.authorization.k8s.io",
    AUTHORIZATION,
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    "selfsubjectaccessreview",
);

/// What may I?
pub static SELF_SUBJECT_RULES_REVIEW: Resource = cluster(
    "selfsubjectrulesreviews.authorization.k8s.io",
    AUTHORIZATION,
    "SelfSubjectRulesReview",
    "selfsubjectrulesreviews",
    "selfsubjectrulesreview",
);

/// May they?
pub static SUBJECT_ACCESS_REVIEW: Resource = cluster(
    "subjectaccessreviews.authorization.k8s.io",
    AUTHORIZATION,
    "SubjectAccessReview",
    "subjectaccessreviews",
    "subjectaccessreview",
);
