//! What a host can run, by the word of libvirt: models and features of processors, machine types, enlightenments.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use serde::{Deserialize, Serialize};

/// Deepest nesting that is followed; libvirt's own documents have less than ten.
const DEPTH: usize = 64;

/// The description. Names are libvirt's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Models that a guest's processor can have here.
    pub cpu_models: Vec<String>,
    /// The model that is nearest to the host's processor; none or one.
    pub model: Vec<String>,
    /// The vendor of the host's processor; none or one.
    pub vendor: Vec<String>,
    /// What `host-model` has besides the model.
    pub features: Vec<String>,
    /// Machine types, aliases such as `q35` too.
    pub machines: Vec<String>,
    /// Enlightenments of Hyper-V.
    pub hyperv: Vec<String>,
}

/// Why a document says nothing.
#[derive(Debug, thiserror::Error)]
#[error("libvirt's description of the host cannot be read: {0}")]
pub struct Unreadable(String);

impl Host {
    /// Reads the two documents of `virsh domcapabilities` and `virsh capabilities`.
    ///
    /// # Errors
    /// What is no XML, or nested beyond reason.
    pub fn read(domain_capabilities: &str, capabilities: &str) -> Result<Self, Unreadable> {
        let mut host = Self::default();
        // The paths of elements are theirs from the root on.
        walk(domain_capabilities, |path, element, text| match path {
            [.., "cpu", "mode", "model"] => {
                let custom = attribute(&element[element.len() - 2], "name");
                let usable = attribute(&element[element.len() - 1], "usable");
                match custom.as_deref() {
                    Some("custom") if usable.as_deref() == Some("yes") => {
                        host.cpu_models.push(text.to_owned());
                    }
                    Some("host-model") => host.model = vec![text.to_owned()],
                    _ => {}
                }
            }
            [.., "cpu", "mode", "vendor"] => host.vendor = vec![text.to_owned()],
            [.., "features", "hyperv", "enum", "value"] => host.hyperv.push(text.to_owned()),
            [.., "cpu", "mode", "feature"] => {
                let of = &element[element.len() - 1];
                if attribute(of, "policy").as_deref() == Some("require")
                    && let Some(name) = attribute(of, "name")
                {
                    host.features.push(name);
                }
            }
            _ => {}
        })?;
        walk(capabilities, |path, element, text| {
            if matches!(path, [.., "guest", "arch", "machine"])
                && attribute(&element[element.len() - 2], "name").as_deref() == Some("x86_64")
            {
                host.machines.push(text.to_owned());
            }
        })?;
        for list in [&mut host.cpu_models, &mut host.features, &mut host.machines] {
            list.sort();
            list.dedup();
        }
        Ok(host)
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element.try_get_attribute(name).ok()??;
    quick_xml::escape::unescape(&found.value)
        .ok()
        .map(std::borrow::Cow::into_owned)
}

/// Calls `see` at the end of every element with the names from the root to it, the elements themselves, and its text.
fn walk(
    xml: &str,
    mut see: impl FnMut(&[&str], &[BytesStart<'static>], &str),
) -> Result<(), Unreadable> {
    let unreadable = |error: quick_xml::Error| Unreadable(error.to_string());
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<BytesStart<'static>> = Vec::new();
    let mut text = String::new();
    let mut told = |open: &[BytesStart<'static>], text: &str| {
        let names: Vec<String> = open
            .iter()
            .map(|element| element.name().as_ref().to_owned())
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        see(&names, open, text.trim());
    };
    loop {
        match reader.read_event().map_err(unreadable)? {
            Event::Start(element) => {
                if open.len() >= DEPTH {
                    return Err(Unreadable("nested too deeply".to_owned()));
                }
                open.push(element.into_owned());
                text.clear();
            }
            Event::Empty(element) => {
                open.push(element.into_owned());
                told(&open, "");
                open.pop();
            }
            Event::Text(words) => text += &words,
            Event::End(_) => {
                told(&open, &text);
                open.pop();
                text.clear();
            }
            Event::Eof => return Ok(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_words_are_read() {
        let domain = "<domainCapabilities><cpu>
            <mode name='host-passthrough' supported='yes'/>
            <mode name='host-model' supported='yes'><model fallback='forbid'>Haswell</model><vendor>Intel</vendor>
              <feature policy='require' name='vmx'/><feature policy='disable' name='pcid'/></mode>
            <mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model></mode>
            </cpu><features><hyperv supported='yes'><enum name='features'><value>relaxed</value></enum></hyperv></features>
            </domainCapabilities>";
        let host = "<capabilities><guest><arch name='i686'><machine>isapc</machine></arch></guest>
            <guest><arch name='x86_64'><machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-7.2</machine>
            <domain type='kvm'><machine>other</machine></domain></arch></guest></capabilities>";
        let read = Host::read(domain, host).unwrap();
        let one = |name: &str| vec![name.to_owned()];
        assert_eq!(read.cpu_models, one("qemu64"));
        assert_eq!(read.model, one("Haswell"));
        assert_eq!(read.vendor, one("Intel"));
        assert_eq!(read.features, one("vmx"));
        assert_eq!(read.hyperv, one("relaxed"));
        assert_eq!(read.machines, ["pc-q35-7.2", "q35"]);
        assert!(Host::read("<a><b></a>", "").is_err());
        assert!(Host::read(&"<a>".repeat(1000), "").is_err());
    }
}
