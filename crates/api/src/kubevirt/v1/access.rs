//! Who may enter the guest: keys and passwords out of secrets, and how they get there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys or passwords for the guest. Exactly one kind must be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessCredential {
    /// Public keys of ssh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_public_key: Option<SSHPublicKeyAccessCredential>,
    /// Passwords of users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_password: Option<UserPasswordAccessCredential>,
}

impl AccessCredential {
    /// The secret that holds them.
    #[must_use]
    pub fn secret(&self) -> Option<&str> {
        let source = match (&self.ssh_public_key, &self.user_password) {
            (Some(keys), _) => keys.source.as_ref(),
            (None, Some(passwords)) => passwords.source.as_ref(),
            (None, None) => None,
        };
        Some(source?.secret.as_ref()?.secret_name.as_str())
    }
}

/// Public keys of ssh: every value of the secret, a key a line.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SSHPublicKeyAccessCredential {
    /// Where the keys are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<AccessCredentialSource>,
    /// How the guest learns of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation_method: Option<SSHPublicKeyPropagation>,
}

/// Where keys or passwords are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessCredentialSource {
    /// A secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<AccessCredentialSecret>,
}

/// A secret of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AccessCredentialSecret {
    /// Name of the secret.
    pub secret_name: String,
}

/// How the guest learns of keys. Exactly one way must be set.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SSHPublicKeyPropagation {
    /// By cloud-init, at the guest's first boot: needs a volume `cloudInitNoCloud`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cloud: Option<CloudInitPropagation>,
    /// By cloud-init, at the guest's first boot: needs a volume `cloudInitConfigDrive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_drive: Option<CloudInitPropagation>,
    /// By the guest's agent, as soon as it answers and whenever the secret changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_guest_agent: Option<AgentKeyPropagation>,
}

/// By cloud-init. It has no settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct CloudInitPropagation {}

/// By the guest's agent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentKeyPropagation {
    /// The guest's users that may enter with these keys; at least one.
    #[serde(default)]
    pub users: Vec<String>,
}

/// Passwords: the secret's keys are the names of users, its values their passwords.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UserPasswordAccessCredential {
    /// Where the passwords are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<AccessCredentialSource>,
    /// How the guest learns of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation_method: Option<UserPasswordPropagation>,
}

/// How the guest learns of passwords.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UserPasswordPropagation {
    /// By the guest's agent, as soon as it answers and whenever the secret changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_guest_agent: Option<AgentPasswordPropagation>,
}

/// By the guest's agent. It has no settings.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct AgentPasswordPropagation {}
