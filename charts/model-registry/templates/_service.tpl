{{- define "model-registry.service" -}}
{{- $database := or .Values.database.secret.name .Values.database.reference -}}
{{- if and .Values.database.secret.name .Values.database.reference -}}
{{- fail "database.secret.name and database.reference exclude each other" -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (not $database) -}}
{{- fail "database.secret.name: replicas share their metadata in PostgreSQL; name the Secret with its URL (or database.reference), or set persistence.enabled" -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (not (hasPrefix "s3://" .Values.artifacts.store)) -}}
{{- fail "artifacts.store: replicas share their files in S3 (s3://bucket/prefix); or set persistence.enabled" -}}
{{- end -}}
grpcPort: 50051
adminPort: 9101
health: verdict.registry.v1.ModelRegistryService
settings:
  MODEL_REGISTRY_LISTEN: 0.0.0.0:50051
  MODEL_REGISTRY_ADMIN_LISTEN: 0.0.0.0:9101
  MODEL_REGISTRY_MLFLOW_LISTEN: {{ ternary "0.0.0.0:5000" "none" .Values.mlflow.enabled }}
  MODEL_REGISTRY_MLFLOW_ARTIFACT_ROOT: {{ .Values.mlflow.artifactRoot | quote }}
  MODEL_REGISTRY_MLFLOW_DIRECT_TRANSFERS: {{ .Values.mlflow.directTransfers | quote }}
  MODEL_REGISTRY_DATA_DIR: /data
  MODEL_REGISTRY_DATABASE_CONNECTIONS: {{ .Values.database.connections | quote }}
  {{- if $database }}
  MODEL_REGISTRY_NO_MIGRATE: "true"
  {{- end }}
  {{- with .Values.database.reference }}
  DATABASE_URL: {{ . | quote }}
  {{- end }}
  {{- with .Values.artifacts.store }}
  ARTIFACT_STORE: {{ . | quote }}
  {{- end }}
  {{- with .Values.artifacts.endpoint }}
  AWS_ENDPOINT_URL_S3: {{ . | quote }}
  {{- end }}
secrets:
  {{- with .Values.database.secret }}
  {{- if .name }}
  DATABASE_URL: {secret: {{ .name }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
  {{- with .Values.webhooks.keySecret }}
  {{- if .name }}
  MODEL_REGISTRY_WEBHOOK_KEY: {secret: {{ .name }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
{{- if .Values.mlflow.enabled }}
ports:
  mlflow: 5000
{{- end }}
{{- if $database }}
# A failure stops the rollout while the old pods go on; they read what a newer schema holds (expand, then contract).
init:
  migrate: [migrate]
{{- end }}
{{- with .Values.database.caConfigMap }}
caConfigMap: {{ . }}
{{- end }}
egress:
  {{- if $database }}
  - name: PostgreSQL
    to:
      {{- include "verdict.cidrs" .Values.database.cidrs | nindent 6 }}
    ports: [{{ .Values.database.port }}]
  {{- end }}
  {{- if or (hasPrefix "s3://" .Values.artifacts.store) .Values.webhooks.allowed .Values.database.reference }}
  - name: S3, Secrets Manager and the receivers of webhooks
    to:
      - {{ include "verdict.publicInternet" . | fromYaml | toJson }}
    ports: [443]
  {{- end }}
{{- end -}}
