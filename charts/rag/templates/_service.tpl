{{- define "rag.service" -}}
{{- if and (not .Values.persistence.enabled) (not .Values.qdrant.url) -}}
{{- fail "qdrant.url: replicas share their index in a Qdrant server; name it, or set persistence.enabled" -}}
{{- end -}}
grpcPort: 50053
adminPort: 9103
health: verdict.rag.v1.RagService
settings:
  RAG_LISTEN: 0.0.0.0:50053
  RAG_ADMIN_LISTEN: 0.0.0.0:9103
  RAG_DATA_DIR: /data
  PREDICT_URL: {{ .Values.predict.url | quote }}
  RAG_EMBEDDER: {{ .Values.models.embedder | quote }}
  RAG_RERANKER: {{ .Values.models.reranker | quote }}
  RAG_GENERATOR: {{ .Values.models.generator | quote }}
  RAG_CHUNK_TOKENS: {{ .Values.chunk.tokens | int | quote }}
  RAG_CHUNK_OVERLAP: {{ .Values.chunk.overlap | int | quote }}
  {{- with .Values.qdrant.url }}
  QDRANT_URL: {{ . | quote }}
  {{- end }}
secrets:
  {{- if .Values.qdrant.url }}
  {{- with .Values.qdrant.secret }}
  {{- if .name }}
  QDRANT_API_KEY: {secret: {{ .name }}, key: {{ .key }}}
  {{- end }}
  {{- end }}
  {{- end }}
egress:
  - name: predict
    to:
      - {{ .Values.predict.peer | toJson }}
    ports: [50052]
  {{- if .Values.qdrant.url }}
  - name: Qdrant
    to:
      - {{ .Values.qdrant.peer | toJson }}
    ports: [{{ .Values.qdrant.port }}]
  {{- end }}
{{- end -}}
