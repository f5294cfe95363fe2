{{/* What objects are called and labelled with. All take `root`, the chart's own context, and `values`, those in force. */}}

{{- define "ztunnel.name" -}}
{{ .values.resourceName | default "ztunnel" }}
{{- end -}}

{{- define "ztunnel.image" -}}
{{- $values := .values -}}
{{- if contains "/" $values.image -}}
{{ $values.image }}
{{- else -}}
{{ with $values.hub }}{{ trimSuffix "/" . }}/{{ end }}{{ $values.image }}:{{ $values.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "ztunnel.istiod" -}}
istiod{{ with .values.revision }}-{{ . }}{{ end }}.{{ .values.istioNamespace }}.svc:15012
{{- end -}}

{{- define "ztunnel.labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Name, namespace (unless cluster-wide), labels and annotations of an object; `more`: labels of this kind alone. */}}
{{- define "ztunnel.metadata" -}}
name: {{ .name | default (include "ztunnel.name" .) }}
{{- if not .clusterWide }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "ztunnel.labels" . | nindent 2 }}
  {{- with .values.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .more }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ztunnel.owned" -}}
app: ztunnel
operator.istio.io/component: Ztunnel
install.operator.istio.io/owning-resource: {{ .values.ownerName }}
{{- end -}}
