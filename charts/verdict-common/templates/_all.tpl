{{/* Every object of a service; a chart's only template includes this. */}}
{{- define "verdict.all" -}}
{{- if .Values.enabled -}}
{{- range $object := list
    "serviceAccount" "externalSecret" "persistentVolumeClaim" "configMap" "networkPolicy" "kubernetesService" "deployment"
    "podDisruptionBudget" "horizontalPodAutoscaler" "serviceMonitor" "prometheusRule" "dashboards" }}
{{- $manifest := include (printf "verdict.%s" $object) $ }}
{{- if trim $manifest }}
---
{{ $manifest }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "verdict.notes" -}}
{{- if .Values.enabled -}}
{{- $service := include "verdict.service" . | fromYaml -}}
{{- $name := include "verdict.fullname" . -}}
{{ $name }} ({{ include "verdict.image" . }}) in namespace {{ .Release.Namespace }}:

  kubectl -n {{ .Release.Namespace }} rollout status deployment/{{ $name }}
  kubectl -n {{ .Release.Namespace }} port-forward service/{{ $name }} {{ $service.grpcPort }} {{ $service.adminPort }}
  grpcurl -plaintext -d '{"service": "{{ $service.health }}"}' localhost:{{ $service.grpcPort }} grpc.health.v1.Health/Check
  curl -s localhost:{{ $service.adminPort }}/readyz      # says what is not ready, and why

Inside the cluster: {{ $name }}.{{ .Release.Namespace }}.svc:{{ $service.grpcPort }}
{{- if .Values.persistence.enabled }}
It keeps its data on the volume {{ .Values.persistence.existingClaim | default $name }}, which `helm uninstall` leaves; one replica, short of service while it is replaced.
{{- end }}
{{- if not .Values.networkPolicy.callers }}
Nobody may call it: networkPolicy.callers names no one.
{{- end }}
{{- end -}}
{{- end -}}
