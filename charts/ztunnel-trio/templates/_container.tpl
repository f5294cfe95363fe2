{{/* Parts of the proxy's container. All take `root` and `values`, as those of names do. */}}

{{/* true where the CA's root comes from a ClusterTrustBundle. */}}
{{- define "ztunnel.trustBundle" -}}
{{- if eq (get .values.env "ENABLE_CLUSTER_TRUST_BUNDLE_API" | toString) "true" -}}true{{- end -}}
{{- end -}}

{{/* Requests and limits without what is empty. */}}
{{- define "ztunnel.resources" -}}
{{- $kept := dict -}}
{{- range $kind, $entries := .values.resources -}}
{{- $some := dict -}}
{{- if kindIs "map" $entries -}}
{{- range $name, $quantity := $entries -}}
{{- if $quantity -}}{{- $_ := set $some $name (include "ztunnel.text" $quantity) -}}{{- end -}}
{{- end -}}
{{- else if $entries -}}
{{- $some = $entries -}}
{{- end -}}
{{- if $some -}}{{- $_ := set $kept $kind $some -}}{{- end -}}
{{- end -}}
{{- $kept | toJson -}}
{{- end -}}

{{/* The environment, a list; of two entries with one name the later is kept, in the place of the earlier. */}}
{{- define "ztunnel.env" -}}
{{- $values := .values -}}
{{- $istiod := include "ztunnel.istiod" . -}}
{{- $resources := include "ztunnel.resources" . | fromJson -}}
{{- $text := list
  (list "CA_ADDRESS" ($values.caAddress | default $istiod))
  (list "XDS_ADDRESS" ($values.xdsAddress | default $istiod))
-}}
{{- if $values.logAsJson -}}{{- $text = append $text (list "LOG_FORMAT" "json") -}}{{- end -}}
{{- with $values.network -}}{{- $text = append $text (list "NETWORK" .) -}}{{- end -}}
{{- $text = concat $text (list
  (list "RUST_LOG" $values.logLevel)
  (list "RUST_BACKTRACE" "1")
  (list "ISTIO_META_CLUSTER_ID" ($values.multiCluster.clusterName | default "Kubernetes"))
  (list "INPOD_ENABLED" "true")
  (list "TERMINATION_GRACE_PERIOD_SECONDS" (include "ztunnel.text" $values.terminationGracePeriodSeconds))
) -}}
{{- $env := list -}}
{{- range $text -}}{{- $env = append $env (dict "name" (first .) "value" (last .)) -}}{{- end -}}
{{- range list
  (list "POD_NAME" "metadata.name")
  (list "POD_NAMESPACE" "metadata.namespace")
  (list "NODE_NAME" "spec.nodeName")
  (list "INSTANCE_IP" "status.podIP")
  (list "SERVICE_ACCOUNT" "spec.serviceAccountName")
-}}
{{- $env = append $env (dict "name" (first .) "valueFrom" (dict "fieldRef" (dict "fieldPath" (last .)))) -}}
{{- end -}}
{{- range $name, $value := $values.meshConfig.defaultConfig.proxyMetadata -}}
{{- $env = append $env (dict "name" $name "value" (include "ztunnel.text" $value)) -}}
{{- end -}}
{{- $cpu := list (list "ZTUNNEL_CPU_LIMIT" "limits.cpu") -}}
{{- with get ($resources.limits | default dict) "cpu" -}}
{{- $cpu = append $cpu (list "ZTUNNEL_RESOURCE_CPU_LIMIT" "limits.cpu") -}}
{{- end -}}
{{- with get ($resources.requests | default dict) "cpu" -}}
{{- $cpu = append $cpu (list "ZTUNNEL_RESOURCE_CPU_REQUEST" "requests.cpu") -}}
{{- end -}}
{{- range $cpu -}}
{{- $field := dict "resource" (last .) "divisor" "1" -}}
{{- $env = append $env (dict "name" (first .) "valueFrom" (dict "resourceFieldRef" $field)) -}}
{{- end -}}
{{- range $name, $value := $values.env -}}
{{- $env = append $env (dict "name" $name "value" (include "ztunnel.text" $value)) -}}
{{- end -}}
{{- if $values.peerCaCrl.enabled -}}
{{- $env = append $env (dict "name" "CRL_PATH" "value" "/var/run/secrets/istio/crl/ca-crl.pem") -}}
{{- end -}}
{{- with include "ztunnel.spire" . | fromJson -}}
{{- range .env -}}{{- $env = append $env . -}}{{- end -}}
{{- end -}}
{{- $latest := dict -}}
{{- range $env -}}{{- $_ := set $latest .name . -}}{{- end -}}
{{- $kept := list -}}
{{- range $env -}}
{{- if hasKey $latest .name -}}
{{- $kept = append $kept (get $latest .name) -}}
{{- $_ := unset $latest .name -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end -}}

{{/* What certificates from SPIRE take: `env`, a list; `directories` of sockets; `processes` of the node or not. */}}
{{- define "ztunnel.spire" -}}
{{- $spire := .values.spire -}}
{{- if $spire.enabled -}}
{{- $isBroker := eq $spire.provider "spiffe_broker" -}}
{{- $byProcess := or (eq $spire.provider "spire_delegated_pid") (and $isBroker (eq $spire.attestation "pid")) -}}
{{- $text := list (list "CA_PROVIDER" $spire.provider) -}}
{{- $sockets := list -}}
{{- if $isBroker -}}
{{- $text = concat $text (list
  (list "SPIFFE_BROKER_ATTESTATION" $spire.attestation)
  (list "SPIFFE_BROKER_SOCKET" (printf "unix://%s" $spire.brokerSocket))
  (list "SPIFFE_BROKER_TIMEOUT" $spire.timeout)
  (list "SPIFFE_ENDPOINT_SOCKET" (printf "unix://%s" $spire.workloadSocket))
) -}}
{{- $sockets = list $spire.brokerSocket $spire.workloadSocket -}}
{{- else -}}
{{- $text = concat $text (list
  (list "SPIRE_ADMIN_ENDPOINT_SOCKET" (printf "unix://%s" $spire.adminSocket))
  (list "SPIRE_TIMEOUT" $spire.timeout)
) -}}
{{- $sockets = list $spire.adminSocket -}}
{{- end -}}
{{- if and $byProcess $spire.runtimeSocket -}}
{{- $text = append $text (list "CONTAINER_RUNTIME_SOCK_PATH" $spire.runtimeSocket) -}}
{{- $sockets = append $sockets $spire.runtimeSocket -}}
{{- end -}}
{{- $env := list -}}
{{- range $text -}}{{- $env = append $env (dict "name" (first .) "value" (last .)) -}}{{- end -}}
{{- $directories := list -}}
{{- range $sockets -}}{{- $directories = append $directories (dir .) -}}{{- end -}}
{{- $processes := and $byProcess (not $spire.runtimeSocket) -}}
{{- dict "env" $env "directories" ($directories | uniq) "processes" $processes | toJson -}}
{{- else -}}
{{- dict | toJson -}}
{{- end -}}
{{- end -}}
