//! Paths: which resource, which object, which verb.

use hyper::Method;

use super::{options, unknown_resource};
use crate::{
    resource::{self, Resource},
    status::Status,
};

/// Longest path that is looked at.
const PATH_BYTES_MAX: usize = 4096;

/// A path's segments, percent-decoded.
#[derive(Debug)]
pub(super) struct Segments {
    whole: String,
    parts: Vec<String>,
}

impl Segments {
    /// Splits a path.
    ///
    /// # Errors
    /// 400 for a path that is too long or not UTF-8 behind its escapes.
    pub(super) fn split(path: &str) -> Result<Self, Status> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Status::bad_request("the path is longer than 4096 bytes"));
        }
        let parts = path
            .split('/')
            .skip(1)
            .map(|part| options::decode(part, false))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Status::bad_request("the path holds a bad percent escape"))?;
        Ok(Self {
            whole: path.to_owned(),
            parts,
        })
    }
}

/// What a request is about.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// `get list watch create update patch delete deletecollection`, or the
    /// lower-case method for other paths.
    pub verb: &'static str,
    /// Where it leads.
    pub destination: Destination<'a>,
    /// Namespace, empty if none.
    pub namespace: &'a str,
    /// Object name, empty if none.
    pub name: &'a str,
    /// Subresource, empty if none.
    pub subresource: &'a str,
    /// The raw query.
    pub query: &'a str,
}

/// A resource, or some other path.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// Discovery, health and the like.
    Fixed(&'a str),
    /// A resource.
    Object {
        /// Which.
        resource: &'static Resource,
    },
}

impl<'a> Place<'a> {
    /// Reads a method and a path.
    ///
    /// # Errors
    /// 404 for a resource that does not exist, 405 for an unused method, 400 for
    /// a query that cannot be decoded.
    pub(super) fn find(
        method: &Method,
        query: &'a str,
        segments: &'a Segments,
    ) -> Result<Self, Status> {
        options::check(query)?;
        let parts: Vec<&str> = segments.parts.iter().map(String::as_str).collect();
        let parts = match parts.as_slice() {
            [rest @ .., ""] => rest, // a trailing slash
            all => all,
        };
        let fixed = || Self {
            verb: plain_verb(method),
            destination: Destination::Fixed(&segments.whole),
            namespace: "",
            name: "",
            subresource: "",
            query,
        };
        let (group, version, rest) = match parts {
            ["api", "v1", rest @ ..] if !rest.is_empty() => ("", "v1", rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(fixed()),
        };
        let find = |plural: &str| {
            resource::find(group, version, plural)
                .ok_or_else(|| unknown_resource(group, version, plural))
        };
        let (resource, namespace, tail) = match rest {
            ["namespaces", name, tail @ ("status" | "finalize")] if group.is_empty() => {
                let resource = find("namespaces")?;
                return Self::object(method, query, resource, "", &[*name, *tail]);
            }
            ["namespaces", namespace, plural, tail @ ..] => (find(plural)?, *namespace, tail),
            [plural, tail @ ..] => (find(plural)?, "", tail),
            [] => return Ok(fixed()),
        };
        if !namespace.is_empty() && !resource.namespaced {
            return Err(Status::no_such_resource(format!(
                "{} are not namespaced; hint: leave /namespaces/{namespace} out",
                resource.plural
            )));
        }
        Self::object(method, query, resource, namespace, tail)
    }

    fn object(
        method: &Method,
        query: &'a str,
        resource: &'static Resource,
        namespace: &'a str,
        tail: &[&'a str],
    ) -> Result<Self, Status> {
        let (name, subresource) = match tail {
            [] => ("", ""),
            [name] => (*name, ""),
            [name, subresource] => (*name, *subresource),
            _ => {
                return Err(Status::no_such_resource(
                    "the server could not find the requested resource",
                ));
            }
        };
        let watched = options::flag(query, "watch");
        let verb = match (method, name.is_empty()) {
            (&Method::GET | &Method::HEAD, _) if watched && subresource.is_empty() => "watch",
            (&Method::GET | &Method::HEAD, true) => "list",
            (&Method::GET | &Method::HEAD, false) => "get",
            (&Method::POST, true) => "create",
            (&Method::POST, false) if !subresource.is_empty() => "create",
            (&Method::PUT, false) => "update",
            (&Method::PATCH, false) => "patch",
            (&Method::DELETE, false) => "delete",
            (&Method::DELETE, true) => "deletecollection",
            _ => return Err(Status::method_not_allowed()),
        };
        let needs_namespace = resource.namespaced && resource.is_stored();
        if needs_namespace && namespace.is_empty() && !matches!(verb, "list" | "watch") {
            return Err(without_namespace(resource, name));
        }
        let destination = Destination::Object { resource };
        Ok(Self {
            verb,
            destination,
            namespace,
            name,
            subresource,
            query,
        })
    }

    /// The resource, if this is a watch.
    pub(super) fn long_running(&self) -> Option<&'static Resource> {
        match self.destination {
            Destination::Object { resource } if self.verb == "watch" => Some(resource),
            _ => None,
        }
    }
}

/// No such path for an object; of all objects together there is but a list.
fn without_namespace(resource: &Resource, name: &str) -> Status {
    let hint = format!(
        "{plural} are namespaced; hint: use the path /namespaces/NAMESPACE/{plural}",
        plural = resource.plural
    );
    if name.is_empty() {
        let mut refused = Status::method_not_allowed();
        refused.message = format!("{}: {hint}", refused.message);
        return refused;
    }
    Status::no_such_resource(format!(
        "the server could not find the requested resource: {hint}"
    ))
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::HEAD => "head",
        _ => "get",
    }
}
