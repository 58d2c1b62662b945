//! kubectl and what a user defines: definitions, their rules, their documentation, and every way to look at and to change their
//! objects. With each kubectl that the machine has, so that an old and a new one both work.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::kubectl::{Kubectl, programs};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget, listKind: GadgetList, shortNames: [gd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size, description: how large}
    - {name: Parts, type: string, jsonPath: ".spec.parts[*].name", priority: 1}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        description: Gadget is a thing.
        type: object
        x-kubernetes-validations:
        - {rule: "self.metadata.name != 'forbidden'", message: that name is taken}
        properties:
          spec:
            description: What is wanted.
            type: object
            required: [size]
            x-kubernetes-validations:
            - rule: "!has(self.limit) || self.size <= self.limit"
              messageExpression: "'size may be at most ' + (self.limit > 100 ? 'much' : 'the limit')"
              fieldPath: .size
              reason: FieldValueForbidden
            properties:
              size: {description: How large., type: integer, minimum: 1, x-kubernetes-validations: [{rule: "self >= oldSelf", message: gadgets only grow}]}
              limit: {type: integer}
              colour: {type: string, default: blue, enum: [blue, red]}
              parts:
                description: What it is made of.
                type: array
                maxItems: 10
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string, maxLength: 20}
                    count: {type: integer, default: 1}
          status:
            type: object
            properties:
              phase: {type: string}
"#;

fn gadget(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: shop.example.com/v1\nkind: Gadget\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Whether this kubectl knows a subcommand or a flag.
async fn knows(k: &Kubectl, args: &[&str], word: &str) -> bool {
    let help = k.run(args, "").await;
    String::from_utf8_lossy(&help.stdout).contains(word)
}

async fn with_each(story: impl AsyncFn(&Kubectl)) {
    let programs = programs().await;
    if programs.is_empty() {
        println!("SKIPPED: no kubectl on this machine");
    }
    for program in programs {
        let k = Kubectl::of(program).await;
        k.ok_with(&["create", "-f", "-"], DEFINITION).await;
        k.ok(&[
            "wait",
            "--for=condition=Established",
            "crd/gadgets.shop.example.com",
            "--timeout=20s",
        ])
        .await;
        story(&k).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_told_to_the_user() {
    with_each(async |k| {
        let refused = k
            .fails(&["apply", "-f", "-"], &gadget("g", "{size: 5, limit: 4}"))
            .await;
        assert!(
            refused.contains("spec.size: Forbidden: size may be at most the limit"),
            "{refused}"
        );
        let refused = k
            .fails(&["apply", "-f", "-"], &gadget("forbidden", "{size: 5}"))
            .await;
        assert!(
            refused.contains("Invalid value: \"object\": that name is taken"),
            "{refused}"
        );
        k.ok_with(&["apply", "-f", "-"], &gadget("g", "{size: 5}"))
            .await;
        let refused = k
            .fails(&["apply", "-f", "-"], &gadget("g", "{size: 4}"))
            .await;
        assert!(
            refused.contains("spec.size: Invalid value: \"integer\": gadgets only grow"),
            "{refused}"
        );
        let refused = k
            .fails(
                &[
                    "patch",
                    "gd",
                    "g",
                    "--type=merge",
                    "-p",
                    r#"{"spec":{"limit":1}}"#,
                ],
                "",
            )
            .await;
        assert!(
            refused.contains("Forbidden: size may be at most the limit"),
            "{refused}"
        );
        let refused = k
            .fails(&["create", "-f", "-"], &gadget("h", "{size: 0}"))
            .await;
        assert!(
            refused.contains("spec.size in body should be greater than or equal to 1"),
            "{refused}"
        );

        let broken = DEFINITION
            .replace("self >= oldSelf", "self.size >= oldSelf")
            .replace("gadgets", "gizmos");
        let refused = k.fails(&["create", "-f", "-"], &broken).await;
        assert!(refused.contains("compilation failed"), "{refused}");
        assert!(
            refused.contains("type 'int' does not support field selection"),
            "{refused}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_shown_in_every_form() {
    with_each(async |k| {
        for (name, spec) in [
            (
                "b",
                "{size: 2, parts: [{name: wheel}, {name: bolt, count: 4}]}",
            ),
            ("a", "{size: 10, colour: red}"),
        ] {
            k.ok_with(&["apply", "-f", "-"], &gadget(name, spec)).await;
        }
        let table = k.ok(&["get", "gd"]).await;
        assert!(
            table.starts_with("NAME   SIZE   AGE\na      10     "),
            "{table}"
        );
        let wide = k.ok(&["get", "gd", "b", "-o", "wide"]).await;
        assert!(wide.starts_with("NAME   SIZE   PARTS "), "{wide}");
        assert!(wide.contains("wheel"), "{wide}");
        assert_eq!(
            k.ok(&[
                "get",
                "gd",
                "--sort-by=.spec.size",
                "-o",
                "jsonpath={.items[*].metadata.name}"
            ])
            .await,
            "b a"
        );
        let sorted = k
            .ok(&["get", "gd", "--sort-by=.spec.size", "--no-headers"])
            .await;
        assert!(sorted.starts_with("b "), "{sorted}");
        let columns = k
            .ok(&[
                "get",
                "gd",
                "-o",
                "custom-columns=N:.metadata.name,C:.spec.colour,P:.spec.parts[*].count",
            ])
            .await;
        let words: Vec<&str> = columns.split_whitespace().collect();
        assert_eq!(
            words,
            ["N", "C", "P", "a", "red", "<none>", "b", "blue", "1,4"]
        );
        let template = "{{range .items}}{{.metadata.name}}={{.spec.size}} {{end}}";
        assert_eq!(
            k.ok(&["get", "gd", "-o", "go-template", "--template", template])
                .await,
            "a=10 b=2 "
        );
        assert_eq!(
            k.ok(&["get", "gd", "-o", "name"]).await,
            "gadget.shop.example.com/a\ngadget.shop.example.com/b\n"
        );
        let described = k.ok(&["describe", "gd", "b"]).await;
        assert!(
            described.contains("Colour:  blue") && described.contains("Name:   wheel"),
            "{described}"
        );
        let labels = k.ok(&["get", "gd", "--show-labels"]).await;
        assert!(labels.contains("LABELS"), "{labels}");
        let resources = k
            .ok(&["api-resources", "--api-group=shop.example.com"])
            .await;
        assert!(
            resources.contains("gadgets") && resources.contains("gd"),
            "{resources}"
        );
        assert!(
            k.ok(&["api-versions"])
                .await
                .contains("shop.example.com/v1")
        );
        k.ok(&["get", "events"]).await;
        if knows(k, &["help", "events"], "events").await {
            k.ok(&["events"]).await;
        }
        let all = k.ok(&["api-resources", "--verbs=list", "-o", "name"]).await;
        for resource in all.lines() {
            k.ok(&["get", resource, "-A", "-o", "wide"]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_changed_in_every_way() {
    with_each(async |k| {
        let first = gadget("g", "{size: 2, parts: [{name: wheel, count: 1}]}");
        assert!(
            k.ok_with(&["apply", "-f", "-"], &first)
                .await
                .contains("created")
        );
        assert!(
            k.ok_with(&["apply", "-f", "-"], &first)
                .await
                .contains("unchanged")
        );
        let second = gadget("g", "{size: 3, parts: [{name: wheel, count: 1}]}");
        let diff = k.run(&["diff", "-f", "-"], &second).await;
        let shown = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert_eq!(
            diff.status.code(),
            Some(1),
            "{shown}{}",
            String::from_utf8_lossy(&diff.stderr)
        );
        assert!(shown.contains("+  size: 3"), "{shown}");
        assert!(
            k.ok_with(&["apply", "-f", "-"], &second)
                .await
                .contains("configured")
        );
        assert!(
            k.run(&["diff", "-f", "-"], &second).await.status.success(),
            "no difference is left"
        );

        let edit = ["edit", "gd", "g"];
        let output = k
            .command(&edit)
            .env("KUBE_EDITOR", "sed -i s/size:.3/size:\\ 7/")
            .output()
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let size = ["get", "gd", "g", "-o", "jsonpath={.spec.size}"];
        assert_eq!(k.ok(&size).await, "7");
        let yaml = k.ok(&["get", "gd", "g", "-o", "yaml"]).await;
        k.ok_with(&["replace", "-f", "-"], &yaml.replace("size: 7", "size: 8"))
            .await;
        assert_eq!(k.ok(&size).await, "8");
        k.ok(&[
            "patch",
            "gd",
            "g",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/spec/parts/-","value":{"name":"bolt"}}]"#,
        ])
        .await;
        assert_eq!(
            k.ok(&["get", "gd", "g", "-o", "jsonpath={.spec.parts[*].count}"])
                .await,
            "1 1"
        );
        k.ok(&["label", "gd", "g", "tier=front"]).await;
        k.ok(&["annotate", "gd", "g", "note=x"]).await;
        assert_eq!(
            k.ok(&["get", "gd", "-l", "tier=front", "-o", "name"]).await,
            "gadget.shop.example.com/g\n"
        );
        let strategic = k
            .fails(&["patch", "gd", "g", "-p", r#"{"spec":{"size":9}}"#], "")
            .await;
        assert!(
            strategic.contains("the body of the request was in an unknown format"),
            "{strategic}"
        );

        let unknown = gadget("u", "{size: 1, weight: 2}");
        let refused = k.fails(&["create", "-f", "-"], &unknown).await;
        assert!(refused.contains("weight"), "{refused}");
        k.ok_with(&["create", "--validate=false", "-f", "-"], &unknown)
            .await;
        assert_eq!(
            k.ok(&["get", "gd", "u", "-o", "jsonpath={.spec.weight}"])
                .await,
            ""
        );
        k.ok(&["delete", "gd", "--all", "--timeout=20s"]).await;
        k.ok(&["delete", "crd", "gadgets.shop.example.com", "--timeout=20s"])
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_explain_themselves() {
    with_each(async |k| {
        let text = k.ok(&["explain", "gadget"]).await;
        assert!(text.contains("Gadget is a thing."), "{text}");
        let text = k.ok(&["explain", "gd.spec"]).await;
        assert!(
            text.contains("What is wanted.") && text.contains("size") && text.contains("required"),
            "{text}"
        );
        let text = k.ok(&["explain", "gd.spec.parts"]).await;
        assert!(
            text.contains("What it is made of.") && text.contains("count"),
            "{text}"
        );
        let text = k.ok(&["explain", "gd", "--recursive"]).await;
        for word in ["spec", "parts", "count", "generateName", "phase"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        if knows(k, &["explain", "--help"], "plaintext-openapiv2").await {
            let text = k
                .ok(&["explain", "gd.spec", "--output=plaintext-openapiv2"])
                .await;
            assert!(
                text.contains("What is wanted.") && text.contains("-required-"),
                "{text}"
            );
        }
        for known in [
            "pod.spec.containers",
            "configmap.data",
            "crd.spec.versions",
            "lease.spec",
            "node.status",
            "pvc.spec",
        ] {
            let text = k.ok(&["explain", known]).await;
            assert!(text.contains("DESCRIPTION"), "{text}");
        }
        k.fails(&["explain", "gd.nothing"], "").await;
    })
    .await;
}
