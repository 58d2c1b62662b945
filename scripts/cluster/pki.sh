# Certificates and kubeconfigs of the cluster. Keys are their owner's alone.

pki=$cluster/pki

make_ca() { # NAME
    [ -e "$pki/$1.crt" ] && return
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$1" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign,digitalSignature" \
        -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}

make_cert() { # NAME CA SUBJECT [ALTERNATIVE-NAMES]
    local name=$1 ca=$2 subject=$3 names=${4:-}
    [ -e "$pki/$name.crt" ] && return
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" \
        -keyout "$pki/$name.key" -out "$pki/$name.csr" 2>/dev/null
    openssl x509 -req -in "$pki/$name.csr" -CA "$pki/$ca.crt" -CAkey "$pki/$ca.key" -CAcreateserial -days 3650 \
        -extfile <(
            echo "keyUsage=critical,digitalSignature"
            echo "extendedKeyUsage=clientAuth,serverAuth"
            [ -z "$names" ] || echo "subjectAltName=$names"
        ) -out "$pki/$name.crt" 2>/dev/null
    rm "$pki/$name.csr"
}

make_kubeconfig() { # FILE CERTIFICATE
    [ -e "$1" ] && return
    cat >"$1" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: berth-cluster
  cluster:
    server: https://$gateway:6443
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: user
  user:
    client-certificate-data: $(base64 -w0 "$pki/$2.crt")
    client-key-data: $(base64 -w0 "$pki/$2.key")
contexts:
- name: berth-cluster
  context: {cluster: berth-cluster, user: user}
current-context: berth-cluster
YAML
}

make_pki() {
    make_ca ca
    make_ca front
    local kubernetes="DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    make_cert apiserver ca "/CN=kube-apiserver" \
        "$kubernetes,DNS:kubernetes.default.svc.cluster.local,IP:$gateway,IP:$api_service"
    make_cert etcd ca "/CN=etcd" "DNS:localhost,IP:127.0.0.1"
    make_cert admin ca "/O=system:masters/CN=kubernetes-admin"
    make_cert kubelet-client ca "/O=system:masters/CN=kube-apiserver-kubelet-client"
    make_cert controller-manager ca "/CN=system:kube-controller-manager"
    make_cert scheduler ca "/CN=system:kube-scheduler"
    make_cert proxy ca "/CN=system:kube-proxy"
    make_cert front-client front "/CN=front-proxy"
    if ! [ -e "$pki/tokens.key" ]; then
        openssl ecparam -name prime256v1 -genkey -noout -out "$pki/tokens.key"
        openssl ec -in "$pki/tokens.key" -pubout -out "$pki/tokens.pub" 2>/dev/null
    fi
    make_kubeconfig "$kubeconfig" admin
    make_kubeconfig "$pki/controller-manager.kubeconfig" controller-manager
    make_kubeconfig "$pki/scheduler.kubeconfig" scheduler
    make_kubeconfig "$pki/proxy.kubeconfig" proxy
}
