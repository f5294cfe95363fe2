{{/*
The values in force, as JSON: defaults, then profile, version and platform, then `global`, then what the user set.
Helm hands the chart its defaults and the user's values as one, so the defaults lie below a key of their own.
*/}}
{{- define "ztunnel.values" -}}
{{- if hasKey .Values "defaults" -}}
{{- fail "defaults.* is nothing to set: write the values at the top level" -}}
{{- end -}}
{{- $user := omit .Values "_defaults" | deepCopy -}}
{{- $global := .Values.global | default dict | deepCopy -}}
{{- $presets := .Files.Get "files/presets.yaml" | fromYaml -}}
{{- $values := deepCopy .Values._defaults -}}
{{- range $kind := list "profile" "compatibilityVersion" "platform" -}}
{{- $known := get $presets $kind -}}
{{- with coalesce (get $user $kind) (get $global $kind) -}}
{{- if not (hasKey $known .) -}}
{{- fail (printf "%s: unknown name %q, known are %s" $kind . (keys $known | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $values = mustMergeOverwrite $values (get $known . | deepCopy) -}}
{{- end -}}
{{- end -}}
{{- mustMergeOverwrite $values $global $user | toJson -}}
{{- end -}}

{{/* A scalar as text. Helm reads every number as a float, and would show 16777216 as 1.6777216e+07. */}}
{{- define "ztunnel.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
