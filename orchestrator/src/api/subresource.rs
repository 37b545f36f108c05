//! Subresources and reviews: small kinds that are answered or that write a
//! part of another object.

use axum::body::Body;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    Api, Incoming,
    body::{self, Decoded},
    options,
    path::Place,
    respond,
    write::{patch_body, same_name, target},
};
use crate::{
    auth::review::Whose,
    registry::{Caller, PatchBody, Target, scale},
    resource::{Resource, Subresource},
    schema::schema,
    status::Status,
};

impl Api {
    pub(super) async fn subresource(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let Some(sub) = resource.subresource(place.subresource) else {
            return Err(Status::no_such_resource(format!(
                "{} have no subresource {:?}",
                resource.plural, place.subresource
            )));
        };
        if !sub.verbs.contains(&place.verb) {
            return Err(Status::method_not_allowed());
        }
        match (sub.name, place.verb) {
            ("scale", _) => self.scale(place, resource, request).await,
            (_, "create") => self.posted(place, resource, sub, request).await,
            (_, "get") => self.get(place, resource, request.parts),
            (_, "update") => self.replace(place, resource, request).await,
            (_, "patch") => self.patch(place, resource, request).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// `binding`, `eviction`, `token`.
    async fn posted(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        sub: &Subresource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let options = options::write(place.query)?;
        let headers = &request.parts.headers;
        let bytes = body::read(request.body).await?;
        let wanted = (sub.group, sub.version, sub.kind);
        let Decoded { value, .. } = body::decode(headers, &bytes, wanted)?;
        let target = Target {
            subresource: sub.name,
            ..target(place, resource)
        };
        match sub.name {
            "binding" => {
                self.registry.bind(target, &value, &options).await?;
                Ok(respond::value(StatusCode::CREATED, &success()))
            }
            "eviction" => {
                self.registry
                    .evict(target, &request.caller, &value, &options)
                    .await?;
                Ok(respond::value(StatusCode::CREATED, &success()))
            }
            "token" => {
                let user = &request.caller.user;
                let mut answer =
                    self.auth
                        .request_token(user, place.namespace, place.name, &value)?;
                answer["apiVersion"] = "authentication.k8s.io/v1".into();
                answer["kind"] = "TokenRequest".into();
                Ok(respond::value(StatusCode::CREATED, &answer))
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn scale(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let target = target(place, resource);
        if place.verb == "get" {
            let object =
                self.registry
                    .get(Target::object(resource, place.namespace, place.name))?;
            return Ok(respond::value(StatusCode::OK, &scale::of(&object.value())));
        }
        let kind = schema()
            .kind("autoscaling", "v1", "Scale")
            .ok_or_else(|| Status::internal("no schema for Scale"))?;
        let (patch, options) = if place.verb == "patch" {
            patch_body(place, request.parts, request.body).await?
        } else {
            let options = options::write(place.query)?;
            let bytes = body::read(request.body).await?;
            let wanted = ("autoscaling", "v1", "Scale");
            let decoded = body::decode(&request.parts.headers, &bytes, wanted)?;
            same_name(place, &decoded.value)?;
            (PatchBody::Merge(decoded.value), options)
        };
        if let PatchBody::Apply {
            configuration,
            force,
        } = &patch
        {
            let patch = PatchBody::Apply {
                configuration: scale::applied(configuration, target)?,
                force: *force,
            };
            let caller = &request.caller;
            let written = self
                .registry
                .patch(target, caller, &patch, &options)
                .await?;
            return Ok(respond::value(StatusCode::OK, &scale::of(&written.value())));
        }
        let change = |current: &Value| {
            let new = patch.apply_to(kind, &scale::of(current))?;
            scale::onto(current, &new, target)
        };
        let written = self
            .registry
            .update(target, &request.caller, &change, &options)
            .await?;
        Ok(respond::value(StatusCode::OK, &scale::of(&written.value())))
    }

    /// Answers a review: a question that is posted and never stored.
    pub(super) async fn review(
        &self,
        place: &Place<'_>,
        resource: &Resource,
        caller: &Caller,
        mut review: Value,
    ) -> Result<Response<Body>, Status> {
        review["apiVersion"] = resource.api_version().into();
        review["kind"] = resource.kind.into();
        let answer = match resource.kind {
            "SelfSubjectAccessReview" => {
                self.auth.review_access(review, Whose::Own(&caller.user))?
            }
            "SubjectAccessReview" => self.auth.review_access(review, Whose::Named)?,
            "LocalSubjectAccessReview" => self
                .auth
                .review_access(review, Whose::NamedIn(place.namespace))?,
            "SelfSubjectRulesReview" => self.auth.review_rules(review, &caller.user)?,
            "SelfSubjectReview" => self.auth.review_self(review, &caller.user),
            "TokenReview" => self.auth.review_token(review)?,
            "Binding" => {
                let name = review["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let pods = crate::resource::find("", "v1", "pods")
                    .ok_or_else(|| Status::internal("no pods"))?;
                let target = Target {
                    subresource: "binding",
                    ..Target::object(pods, place.namespace, &name)
                };
                let options = options::write(place.query)?;
                self.registry.bind(target, &review, &options).await?;
                success()
            }
            _ => return Err(Status::method_not_allowed()),
        };
        Ok(respond::value(StatusCode::CREATED, &answer))
    }
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
