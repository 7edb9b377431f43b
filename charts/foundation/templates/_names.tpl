{{- define "foundation.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: verdict
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* One ExternalSecret: {root, name, namespace, key, type, data}. */}}
{{- define "foundation.externalSecret" }}
---
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "foundation.labels" .root | nindent 4 }}
spec:
  refreshInterval: {{ .root.Values.externalSecrets.refreshInterval }}
  secretStoreRef:
    kind: {{ .root.Values.externalSecrets.store.kind }}
    name: {{ .root.Values.externalSecrets.store.name }}
  target:
    name: {{ .name }}
    creationPolicy: Owner
    deletionPolicy: Retain
    template:
      engineVersion: v2
      type: {{ .type }}
      data:
        {{- range $key, $template := .data }}
        {{ $key }}: {{ $template | quote }}
        {{- end }}
  dataFrom:
    - extract:
        key: {{ .key }}
{{- end -}}
