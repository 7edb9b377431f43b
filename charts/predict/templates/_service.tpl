{{- define "predict.service" -}}
{{- $database := or .Values.database.secret.name .Values.database.reference -}}
{{- if and .Values.database.secret.name .Values.database.reference -}}
{{- fail "database.secret.name and database.reference exclude each other" -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (not $database) -}}
{{- fail "database.secret.name: a decision must outlive its pod; name the Secret with the URL of PostgreSQL (or database.reference), or set persistence.enabled" -}}
{{- end -}}
grpcPort: 50052
adminPort: 9102
health: verdict.predict.v1.PredictService
settings:
  PREDICT_LISTEN: 0.0.0.0:50052
  PREDICT_ADMIN_LISTEN: 0.0.0.0:9102
  PREDICT_DATA_DIR: /data
  {{- with .Values.models }}
  PREDICT_MODELS: {{ join "," . | quote }}
  {{- end }}
  PREDICT_QUEUE_SIZE: {{ .Values.batch.queueSize | int | quote }}
  PREDICT_BATCH_TOKENS: {{ .Values.batch.tokens | int | quote }}
  PREDICT_BATCH_ITEMS: {{ .Values.batch.items | int | quote }}
  PREDICT_BATCH_DELAY: {{ .Values.batch.delay | quote }}
  PREDICT_RESPONSE_CACHE_BYTES: {{ .Values.responseCacheBytes | int64 | quote }}
  PREDICT_GENERATION_RUNNING: {{ .Values.generation.running | int | quote }}
  PREDICT_GENERATION_QUEUE: {{ .Values.generation.queue | int | quote }}
  PREDICT_GENERATION_CACHE_TOKENS: {{ .Values.generation.cacheTokens | int64 | quote }}
  REGISTRY_URL: {{ .Values.registry.url | quote }}
  {{- with .Values.database.reference }}
  DATABASE_URL: {{ . | quote }}
  {{- end }}
  {{- if .Values.routes }}
  PREDICT_ROUTES: /etc/predict/routes.json
  {{- end }}
secrets:
  {{- with .Values.database.secret }}
  {{- if .name }}
  DATABASE_URL: {secret: {{ .name }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
{{- if .Values.routes }}
files:
  routes.json: {{ dict "routes" .Values.routes | toJson | quote }}
{{- end }}
{{- with .Values.database.caConfigMap }}
caConfigMap: {{ . }}
{{- end }}
egress:
  - name: the registry
    to:
      - {{ .Values.registry.peer | toJson }}
    ports: [50051]
  {{- if $database }}
  - name: PostgreSQL
    to:
      {{- include "verdict.cidrs" .Values.database.cidrs | nindent 6 }}
    ports: [{{ .Values.database.port }}]
  {{- end }}
  {{- if .Values.database.reference }}
  - name: Secrets Manager
    to:
      - {{ include "verdict.publicInternet" . | fromYaml | toJson }}
    ports: [443]
  {{- end }}
{{- end -}}
