//! A tree of XML elements and its text. Everything is escaped here, and only here.

use std::fmt::Display;

use quick_xml::escape::escape;

use crate::DomainError;

/// An element with either a text or children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Self>,
    text: Option<String>,
}

impl Element {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            attributes: Vec::new(),
            children: Vec::new(),
            text: None,
        }
    }

    #[allow(
        clippy::needless_pass_by_value,
        reason = "literals, numbers and strings at every call"
    )]
    pub(crate) fn attribute(mut self, name: &'static str, value: impl Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// The attribute, if there is a value.
    pub(crate) fn maybe(self, name: &'static str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.attribute(name, value),
            None => self,
        }
    }

    pub(crate) fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// Any number of children; an `Option` will do.
    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    #[allow(
        clippy::needless_pass_by_value,
        reason = "literals, numbers and strings at every call"
    )]
    pub(crate) fn text(mut self, text: impl Display) -> Self {
        self.text = Some(text.to_string());
        self
    }

    /// The document, indented by two spaces.
    pub(crate) fn render(&self) -> Result<String, DomainError> {
        let mut out = String::with_capacity(4096);
        self.write(&mut out, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, depth: usize) -> Result<(), DomainError> {
        let indent = "  ".repeat(depth);
        out.push_str(&indent);
        out.push('<');
        out.push_str(self.name);
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("='");
            out.push_str(&escape(plain(value)?));
            out.push('\'');
        }
        if let Some(text) = &self.text {
            out.push('>');
            out.push_str(&escape(plain(text)?));
        } else if self.children.is_empty() {
            out.push_str("/>\n");
            return Ok(());
        } else {
            out.push_str(">\n");
            for child in &self.children {
                child.write(out, depth + 1)?;
            }
            out.push_str(&indent);
        }
        out.push_str("</");
        out.push_str(self.name);
        out.push_str(">\n");
        Ok(())
    }
}

/// Most control characters cannot be written in XML at all, and the others have no place in a domain.
fn plain(text: &str) -> Result<&str, DomainError> {
    let forbidden = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    if text.contains(forbidden) {
        Err(DomainError::Text(text.to_owned()))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_escaped() {
        let hostile = "a'/><evil b=\"&amp;]]>";
        let xml = Element::new("x")
            .attribute("y", hostile)
            .child(Element::new("z").text(hostile))
            .render();
        let escaped = "a&apos;/&gt;&lt;evil b=&quot;&amp;amp;]]&gt;";
        assert_eq!(
            xml.unwrap(),
            format!("<x y='{escaped}'>\n  <z>{escaped}</z>\n</x>\n")
        );
    }

    #[test]
    fn control_characters_are_refused() {
        for text in ["a\0", "a\n", "\u{1b}[0m", "\u{85}", "\u{ffff}"] {
            let xml = Element::new("x").text(text).render();
            assert_eq!(xml, Err(DomainError::Text(text.to_owned())));
        }
    }
}
