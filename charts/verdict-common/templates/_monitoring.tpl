{{- define "verdict.serviceMonitor" -}}
{{- if .Values.monitoring.serviceMonitor -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
    {{- with .Values.monitoring.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  jobLabel: app.kubernetes.io/name
  selector:
    matchLabels:
      {{- include "verdict.selectorLabels" . | nindent 6 }}
  endpoints:
    - port: admin
      path: /metrics
      interval: {{ .Values.monitoring.interval }}
      # The services' own label `service` is the gRPC service that was called; the operator's would take its place.
      honorLabels: true
{{- end -}}
{{- end -}}

{{/* rules/<chart name>.yaml as it is: promtool checks and tests the very file that is rendered here. */}}
{{- define "verdict.prometheusRule" -}}
{{- if .Values.monitoring.rules -}}
{{- $path := printf "rules/%s.yaml" .Chart.Name -}}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
    {{- with .Values.monitoring.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- .Files.Get $path | required (printf "%s is missing from the chart" $path) | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* For Grafana's sidecar, which loads every ConfigMap with this label. */}}
{{- define "verdict.dashboards" -}}
{{- if .Values.monitoring.dashboards -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "verdict.fullname" . }}-dashboards
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "verdict.labels" . | nindent 4 }}
    grafana_dashboard: "1"
data:
  {{- (.Files.Glob "dashboards/*.json").AsConfig | required "dashboards/ of the chart is empty" | nindent 2 }}
{{- end -}}
{{- end -}}
