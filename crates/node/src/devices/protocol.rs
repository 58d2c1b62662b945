//! What a kubelet and a device plugin say to each other: package `v1beta1` of Kubernetes' device plugin API, gRPC on unix
//! sockets. Only what berth's plugins need; numbers of fields are the API's.
//!
//! Source: `staging/src/k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto` of Kubernetes.

use std::collections::HashMap;

/// The version that both sides must name.
pub(super) const VERSION: &str = "v1beta1";
pub(super) const REGISTER: &str = "/v1beta1.Registration/Register";
pub(super) const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
pub(super) const LIST_AND_WATCH: &str = "/v1beta1.DevicePlugin/ListAndWatch";
pub(super) const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
/// Health of a device that pods can have.
pub(super) const HEALTHY: &str = "Healthy";
/// Health of one that they cannot.
pub(super) const UNHEALTHY: &str = "Unhealthy";

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct RegisterRequest {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    /// Name of the plugin's socket in the kubelet's directory.
    #[prost(string, tag = "2")]
    pub(super) endpoint: String,
    #[prost(string, tag = "3")]
    pub(super) resource_name: String,
    #[prost(message, optional, tag = "4")]
    pub(super) options: Option<Options>,
}

/// Which further calls a plugin wants: none.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Options {
    #[prost(bool, tag = "1")]
    pub(super) pre_start_required: bool,
    #[prost(bool, tag = "2")]
    pub(super) get_preferred_allocation_available: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) devices: Vec<Share>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Share {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) health: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) device_ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) container_responses: Vec<ContainerAllocateResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerAllocateResponse {
    #[prost(map = "string, string", tag = "1")]
    pub(super) envs: HashMap<String, String>,
    #[prost(message, repeated, tag = "3")]
    pub(super) devices: Vec<DeviceSpec>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct DeviceSpec {
    #[prost(string, tag = "1")]
    pub(super) container_path: String,
    #[prost(string, tag = "2")]
    pub(super) host_path: String,
    /// For the control group: `r`, `w`, `m`.
    #[prost(string, tag = "3")]
    pub(super) permissions: String,
}
