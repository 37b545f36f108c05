//! Keeps `default/kubernetes`: the Service by which pods reach this server,
//! with its Endpoints and its EndpointSlice. All three are written again as
//! soon as somebody changes or deletes them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    allocator::Range,
    backend::{family, services},
    slices,
};
use crate::{
    controller::runtime::{Again, Change, Context, Controller, Source},
    registry::{Target, client::Client},
    resource::{Resource, core::ENDPOINTS},
    status::Status,
};

const NAME: &str = "kubernetes-service-controller";
const NAMESPACE: &str = "default";
const SERVICE: &str = "kubernetes";
const KEY: &str = "default/kubernetes";
const PORT: u16 = 443;

/// How the server is reached.
#[derive(Clone, Debug)]
pub struct Reachable {
    /// Where it serves.
    pub address: SocketAddr,
    /// The Service ranges; the first address of the first is the Service's.
    pub ranges: Vec<Range>,
}

/// The controller.
#[derive(Debug)]
pub struct ApiServerController {
    client: Client,
    reachable: Reachable,
}

impl ApiServerController {
    /// Over its context; the key waits from the start, as nothing may exist yet.
    pub fn new(context: &Context, reachable: Reachable) -> Self {
        context.queue.add(KEY.into());
        if reachable.address.ip().is_loopback() {
            tracing::info!(
                address = %reachable.address,
                "pods cannot reach this server; hint: --advertise an address of this machine"
            );
        }
        let present = context.client.cache_of(services()).get(KEY);
        if let Some(service) = present.map(|entry| entry.value())
            && let Some(address) = misplaced(&reachable, &service)
        {
            tracing::warn!(
                address,
                "the Service default/kubernetes has an address of a former --service-cidr, for which \
                 this server's certificate does not count; hint: kubectl delete service kubernetes, \
                 then restart the pods that use it"
            );
        }
        Self {
            client: context.client.clone(),
            reachable,
        }
    }

    /// Makes an object have these fields, and leaves its others alone.
    async fn ensure(
        &self,
        resource: &'static Resource,
        labels: &Value,
        fields: &Value,
    ) -> Result<(), Status> {
        let fill = |object: &mut Value| {
            for (key, value) in labels.as_object().into_iter().flatten() {
                object["metadata"]["labels"][key] = value.clone();
            }
            merge(object, fields);
        };
        let Some(entry) = self.client.cache_of(resource).get(KEY) else {
            let mut object = json!({"metadata": {"name": SERVICE}});
            fill(&mut object);
            let made = self.client.create_value(resource, NAMESPACE, object);
            return made.await.map(drop);
        };
        let present = entry.value();
        let mut wanted = present.clone();
        fill(&mut wanted);
        if wanted == present {
            return Ok(());
        }
        let change = |current: &Value| {
            let mut new = current.clone();
            fill(&mut new);
            Ok(new)
        };
        let target = Target::object(resource, NAMESPACE, SERVICE);
        self.client.change(target, &change).await.map(drop)
    }
}

/// Objects are merged, everything else is replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// The Service's desired state. The address that it has stays, as no Service
/// can change it. Pure.
fn service(reachable: &Reachable, present: Option<&Value>) -> Value {
    let port = json!({"name": "https", "port": PORT, "protocol": "TCP", "targetPort": reachable.address.port()});
    let mut service = json!({"spec": {
        "ports": [port],
        "sessionAffinity": "None",
        "type": "ClusterIP",
    }});
    if present.is_none() {
        let ip: Option<IpAddr> = reachable.ranges.first().map(Range::first);
        let ip = ip.map(|ip| ip.to_string());
        service["spec"]["clusterIP"] = json!(ip);
        service["spec"]["clusterIPs"] = json!([ip]);
    }
    service
}

/// The address that the Service has, if it is not the one that it should have:
/// the range has changed since it was made. Pure.
fn misplaced<'s>(reachable: &Reachable, present: &'s Value) -> Option<&'s str> {
    let wanted = reachable.ranges.first()?.first();
    let address = present["spec"]["clusterIP"].as_str()?;
    (address.parse() != Ok(wanted)).then_some(address)
}

/// The Endpoints' subsets. Addresses that nobody else can reach are left out. Pure.
fn endpoints(address: SocketAddr) -> Value {
    if address.ip().is_loopback() {
        return json!({"subsets": []});
    }
    json!({"subsets": [{
        "addresses": [{"ip": address.ip().to_string()}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    }]})
}

/// The EndpointSlice's contents. Pure.
fn slice(address: SocketAddr) -> Value {
    let ip = address.ip().to_string();
    let endpoints = if address.ip().is_loopback() {
        json!([])
    } else {
        json!([{"addresses": [ip], "conditions": {"ready": true}}])
    };
    json!({
        "addressType": family(&ip),
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    })
}

impl Controller for ApiServerController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn workers(&self) -> usize {
        1
    }

    fn sources(&self) -> Vec<Source> {
        let ours = |change: &Change<'_>| {
            let key = (*change.entry.key == *KEY).then(|| Arc::clone(&change.entry.key));
            key.into_iter().collect()
        };
        let all = [services(), &ENDPOINTS, slices::resource()];
        all.map(|resource| Source::new(resource, ours)).into()
    }

    async fn reconcile(&self, _key: &str) -> Result<Again, Status> {
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let present = self.client.cache_of(services()).get(KEY);
        let wanted = service(&self.reachable, present.map(|entry| entry.value()).as_ref());
        self.ensure(services(), &labels, &wanted).await?;
        let labels = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
        self.ensure(&ENDPOINTS, &labels, &endpoints(self.reachable.address))
            .await?;
        let labels = json!({slices::SERVICE: SERVICE});
        self.ensure(slices::resource(), &labels, &slice(self.reachable.address))
            .await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_has_the_first_address_of_the_range() {
        let reachable = Reachable {
            address: "192.0.2.7:6443".parse().unwrap(),
            ranges: vec![Range::parse("10.96.0.0/16").unwrap()],
        };
        let first = service(&reachable, None);
        assert_eq!(first["spec"]["clusterIP"], "10.96.0.1");
        assert_eq!(first["spec"]["ports"][0]["targetPort"], 6443);
        assert_eq!(misplaced(&reachable, &first), None);
        // One of a former range keeps its address, and that is told.
        let former = json!({"spec": {"clusterIP": "10.43.0.1"}});
        assert!(
            service(&reachable, Some(&former))["spec"]
                .get("clusterIP")
                .is_none()
        );
        assert_eq!(misplaced(&reachable, &former), Some("10.43.0.1"));
        let slice = slice(reachable.address);
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.7"]));
    }

    #[test]
    fn a_loopback_address_is_told_to_nobody() {
        let address = "127.0.0.1:6443".parse().unwrap();
        assert_eq!(endpoints(address), json!({"subsets": []}));
        assert_eq!(slice(address)["endpoints"], json!([]));
    }
}
