//! Create, update and patch of objects.

use axum::body::Body;
use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::Value;

use super::{
    Api, Incoming,
    accept::{self, Shape},
    body::{self, Decoded},
    options,
    path::Place,
    respond, shape,
};
use crate::{
    auth::{self, Attributes, ResourceTarget, User},
    registry::{PatchBody, Target, WriteOptions, Written},
    resource::Resource,
    status::Status,
};

impl Api {
    pub(super) async fn create(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let mut options = options::write(place.query)?;
        let headers = &request.parts.headers;
        let bytes = body::read(request.body).await?;
        let wanted = (resource.group, resource.version, resource.kind);
        let Decoded { value, duplicates } = body::decode(headers, &bytes, wanted)?;
        options.duplicates = duplicates;
        if !resource.is_stored() {
            return self.review(place, resource, &request.caller, value).await;
        }
        let target = Target::object(resource, place.namespace, "");
        let written = self
            .registry
            .create(target, &request.caller, value, &options)
            .await?;
        self.written(place, request.parts, resource, written)
    }

    pub(super) async fn replace(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let (value, options) = replacement(place, resource, request.parts, request.body).await?;
        let target = target(place, resource);
        let change = |_: &Value| Ok(value.clone());
        let written = self
            .registry
            .update(target, &request.caller, &change, &options)
            .await?;
        self.written(place, request.parts, resource, written)
    }

    pub(super) async fn patch(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        request: Incoming<'_>,
    ) -> Result<Response<Body>, Status> {
        let (patch, mut options) = patch_body(place, request.parts, request.body).await?;
        if matches!(patch, PatchBody::Apply { .. }) {
            options.no_creation = self.no_creation(place, resource, &request.caller.user);
        }
        let target = target(place, resource);
        let written = self
            .registry
            .patch(target, &request.caller, &patch, &options)
            .await?;
        self.written(place, request.parts, resource, written)
    }

    /// Why the user may not create this object: the right to patch is not enough.
    fn no_creation(
        &self,
        place: &Place<'_>,
        resource: &'static Resource,
        user: &User,
    ) -> Option<Status> {
        let target = ResourceTarget {
            group: resource.group,
            resource: resource.plural,
            subresource: place.subresource,
            namespace: place.namespace,
            name: place.name,
            node_name: "",
        };
        let attributes = Attributes::resource("create", target);
        let decision = self.auth.authorize(user, &attributes);
        (!decision.allowed()).then(|| auth::forbidden(user, &attributes, decision.reason()))
    }

    /// Answers a write in the shape the client wants.
    pub(super) fn written(
        &self,
        place: &Place<'_>,
        parts: &Parts,
        resource: &Resource,
        written: Written,
    ) -> Result<Response<Body>, Status> {
        let code = if written.created {
            StatusCode::CREATED
        } else {
            StatusCode::OK
        };
        let mut response = match accept::shape(&parts.headers)? {
            Shape::Plain => respond::json(code, shape::plain(resource, written.object)),
            Shape::Metadata => respond::value(code, &shape::partial(&written.value()["metadata"])),
            Shape::Table => {
                let include = shape::Include::parse(place.query);
                let now = self.registry.now();
                let table = shape::table_of(resource, written.value(), include, now);
                respond::value(code, &table)
            }
        };
        respond::warn(&mut response, &written.warnings);
        Ok(response)
    }
}

/// The object, or the subresource, that a path names.
pub(super) fn target<'a>(place: &Place<'a>, resource: &'static Resource) -> Target<'a> {
    Target {
        resource,
        subresource: place.subresource,
        namespace: place.namespace,
        name: place.name,
    }
}

/// The body of a PUT on an object of `resource`.
pub(super) async fn replacement(
    place: &Place<'_>,
    resource: &Resource,
    parts: &Parts,
    body: Body,
) -> Result<(Value, WriteOptions), Status> {
    let mut options = options::write(place.query)?;
    let bytes = body::read(body).await?;
    let wanted = (resource.group, resource.version, resource.kind);
    let Decoded { value, duplicates } = body::decode(&parts.headers, &bytes, wanted)?;
    options.duplicates = duplicates;
    same_name(place, &value)?;
    Ok((value, options))
}

/// 400 unless the body of a PUT names the object that its path names.
pub(super) fn same_name(place: &Place<'_>, object: &Value) -> Result<(), Status> {
    let given = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let (path, name, namespace) = (place.name, given("name"), given("namespace"));
    let why = if name.is_empty() {
        format!(
            "the name of the object ({path} based on URL) was undeterminable: name must be provided"
        )
    } else if name != path {
        format!("the name of the object ({name}) does not match the name on the URL ({path})")
    } else if !place.namespace.is_empty() && !namespace.is_empty() && namespace != place.namespace {
        format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            place.namespace
        )
    } else {
        return Ok(());
    };
    Err(Status::bad_request(why))
}

/// The body of a PATCH.
pub(super) async fn patch_body(
    place: &Place<'_>,
    parts: &Parts,
    body: Body,
) -> Result<(PatchBody, WriteOptions), Status> {
    let options = options::write(place.query)?;
    let kind = body::content_type(&parts.headers);
    let bytes = body::read(body).await?;
    let force = options::flag(place.query, "force");
    let patch = PatchBody::parse(&kind, &bytes, force, &options.field_manager)?;
    Ok((patch, options))
}
