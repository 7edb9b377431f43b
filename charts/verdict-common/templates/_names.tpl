{{/* The release's name, with the chart's where it does not hold it: `helm install predict ./charts/predict` makes `predict`. */}}
{{- define "verdict.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "verdict.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "verdict.labels" -}}
{{ include "verdict.selectorLabels" . }}
app.kubernetes.io/part-of: verdict
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{- define "verdict.metadata" -}}
name: {{ include "verdict.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "verdict.labels" . | nindent 2 }}
{{- end -}}

{{- define "verdict.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "verdict.fullname" .) -}}
{{- end -}}

{{/* By digest where there is one: it wins over the tag. */}}
{{- define "verdict.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/*
What a chart says about its service, as a dict; every chart defines `<chart name>.service`:
  grpcPort, adminPort   where it listens
  health                full gRPC name of the service that readiness asks for
  settings              environment variable: value, of this service alone
  secrets               environment variable: {secret, key, optional}
  ports                 further ports, name: number
  init                  name: arguments, run in this order before the service, with its image, settings and secrets
  egress                peers it may call besides DNS and the collector
  files                 file name: content, mounted at /etc/<chart name>
  caConfigMap           ConfigMap with the CA of the database, mounted at /etc/database-ca
*/}}
{{- define "verdict.service" -}}
{{- include (printf "%s.service" .Chart.Name) . -}}
{{- end -}}

{{/* One writer on one disk: a volume of its own, one replica, the old one gone before the new one starts. */}}
{{- define "verdict.isSingle" -}}
{{- if .Values.persistence.enabled -}}true{{- end -}}
{{- end -}}

{{/* Combinations that no schema can refuse. */}}
{{- define "verdict.check" -}}
{{- if and .Values.persistence.enabled .Values.autoscaling.enabled -}}
{{- fail "autoscaling.enabled and persistence.enabled exclude each other: what is on one disk has one writer" -}}
{{- end -}}
{{- if and .Values.persistence.enabled (gt (int .Values.replicas) 1) -}}
{{- fail "persistence.enabled allows replicas: 1 alone: what is on one disk has one writer" -}}
{{- end -}}
{{- end -}}
