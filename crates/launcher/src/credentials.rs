//! Keys and passwords that the guest's agent is given: when it first answers, and when what the pod has of them changes.
//!
//! Keys that a user of the guest added himself stay; keys that left the secret are taken away again, as far as this launcher
//! gave them.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::kubevirt::v1::VirtualMachineInstanceSpec;
use berth_api::launcher::credential_volume;
use berth_hypervisor::Hypervisor;

use crate::agent::Agent;
use crate::texts::Texts;

/// What the guest is to know, and what it was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    texts: Texts,
    /// Volumes with keys, and the users that they are for.
    keys: Vec<(String, Vec<String>)>,
    /// Volumes with passwords.
    passwords: Vec<String>,
    /// By user.
    told_keys: BTreeMap<String, BTreeSet<String>>,
    told_passwords: BTreeMap<String, Vec<u8>>,
}

impl Credentials {
    /// None where the spec asks the agent for nothing.
    pub(crate) fn of(spec: &VirtualMachineInstanceSpec, texts: Texts) -> Option<Self> {
        let (mut keys, mut passwords) = (Vec::new(), Vec::new());
        for (index, credential) in spec.access_credentials.iter().enumerate() {
            let volume = credential_volume(index);
            let method = credential.ssh_public_key.as_ref();
            let method = method.and_then(|keys| keys.propagation_method.as_ref());
            if let Some(agent) = method.and_then(|method| method.qemu_guest_agent.as_ref()) {
                keys.push((volume, agent.users.clone()));
            } else if credential.user_password.is_some() {
                passwords.push(volume);
            }
        }
        (!keys.is_empty() || !passwords.is_empty()).then(|| Self {
            texts,
            keys,
            passwords,
            ..Self::default()
        })
    }

    /// Brings the guest up to date. Nothing is asked of it when it is.
    ///
    /// # Errors
    /// A sentence for the user, without what is secret.
    pub(crate) async fn apply<H: Hypervisor>(&mut self, agent: &Agent<H>) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (volume, users) in &self.keys {
            let keys = self.texts.keys(volume).map_err(said)?;
            for user in users {
                wanted.entry(user.clone()).or_default().extend(keys.clone());
            }
        }
        for (user, keys) in &wanted {
            let told = self.told_keys.entry(user.clone()).or_default();
            let gone: Vec<&String> = told.difference(keys).collect();
            if !gone.is_empty() {
                agent.remove_keys(user, &gone).await?;
            }
            let new: Vec<&String> = keys.difference(told).collect();
            if !new.is_empty() {
                agent.add_keys(user, &new).await?;
            }
            told.clone_from(keys);
        }
        for volume in &self.passwords {
            for (user, mut password) in self.texts.read(volume).map_err(said)? {
                // Who writes a secret with an editor leaves an end of line.
                while password.last().is_some_and(u8::is_ascii_whitespace) {
                    password.pop();
                }
                if self.told_passwords.get(&user) != Some(&password) {
                    agent.set_password(&user, &password).await?;
                    self.told_passwords.insert(user, password);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use berth_hypervisor::fake::Fake;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_guest_is_told_what_is_new_and_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let put = |volume: &str, key: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(volume)).unwrap();
            std::fs::write(dir.path().join(volume).join(key), text).unwrap();
        };
        put("access-0", "k", "key one\nkey two\n");
        put("access-1", "root", "secret\n");
        let spec = serde_json::from_value(json!({"domain": {"devices": {}}, "accessCredentials": [
            {"sshPublicKey": {"source": {"secret": {"secretName": "k"}},
                              "propagationMethod": {"qemuGuestAgent": {"users": ["root"]}}}},
            {"userPassword": {"source": {"secret": {"secretName": "p"}},
                              "propagationMethod": {"qemuGuestAgent": {}}}},
            {"sshPublicKey": {"source": {"secret": {"secretName": "k"}}, "propagationMethod": {"noCloud": {}}}},
        ]}))
        .unwrap();
        let mut credentials = Credentials::of(&spec, Texts::at(dir.path())).unwrap();
        let fake = Fake::new();
        fake.define_and_start("<domain><name>a</name><uuid>u</uuid></domain>")
            .await
            .unwrap();
        let agent = Agent::new(fake.clone(), "u".to_owned());
        let why = credentials.apply(&agent).await.unwrap_err();
        assert!(why.contains("not connected"), "{why}");
        for command in [
            "guest-ssh-add-authorized-keys",
            "guest-ssh-remove-authorized-keys",
            "guest-set-user-password",
        ] {
            fake.answer_agent(command, "{}");
        }
        // The second time there is nothing to tell.
        for _ in 0..2 {
            credentials.apply(&agent).await.unwrap();
        }
        let add = json!({"execute": "guest-ssh-add-authorized-keys",
                         "arguments": {"username": "root", "keys": ["key one", "key two"]}});
        let password = json!({"execute": "guest-set-user-password",
                              "arguments": {"username": "root", "password": "c2VjcmV0", "crypted": false}});
        assert_eq!(fake.asked_agent(), [add, password]);
        put("access-0", "k", "key two\n");
        credentials.apply(&agent).await.unwrap();
        let remove = json!({"execute": "guest-ssh-remove-authorized-keys",
                            "arguments": {"username": "root", "keys": ["key one"]}});
        assert_eq!(fake.asked_agent().last(), Some(&remove));
    }

    #[test]
    fn nobody_asks_an_agent_for_nothing() {
        assert!(
            Credentials::of(&VirtualMachineInstanceSpec::default(), Texts::default()).is_none()
        );
    }
}
