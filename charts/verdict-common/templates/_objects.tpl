{{/* Headless: a client that knows gRPC's load balancing sees every pod, and no proxy pins its one connection to one of them. */}}
{{- define "verdict.kubernetesService" -}}
{{- $service := include "verdict.service" . | fromYaml -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "verdict.selectorLabels" . | nindent 4 }}
  ports:
    - name: grpc
      port: {{ $service.grpcPort }}
      targetPort: grpc
      appProtocol: kubernetes.io/h2c
    - name: admin
      port: {{ $service.adminPort }}
      targetPort: admin
      appProtocol: http
    {{- range $name, $port := $service.ports }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
      appProtocol: http
    {{- end }}
{{- end -}}

{{- define "verdict.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "verdict.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "verdict.labels" . | nindent 4 }}
  {{- with .Values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{- define "verdict.persistentVolumeClaim" -}}
{{- if and .Values.persistence.enabled (not .Values.persistence.existingClaim) -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
  annotations:
    # What is on it outlives the release.
    helm.sh/resource-policy: keep
spec:
  accessModes: [ReadWriteOnce]
  {{- with .Values.persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .Values.persistence.size }}
{{- end -}}
{{- end -}}

{{- define "verdict.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "verdict.selectorLabels" . | nindent 6 }}
{{- end -}}

{{- define "verdict.horizontalPodAutoscaler" -}}
{{- if .Values.autoscaling.enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "verdict.fullname" . }}
  minReplicas: {{ .Values.autoscaling.minReplicas }}
  maxReplicas: {{ .Values.autoscaling.maxReplicas }}
  metrics:
    {{- with .Values.autoscaling.inFlightPerPod }}
    # Calls that have begun and not ended, from /metrics by way of a custom metrics adapter: queues show here before CPU does.
    - type: Pods
      pods:
        metric:
          name: grpc_requests_in_flight
        target:
          type: AverageValue
          averageValue: {{ . | quote }}
    {{- end }}
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .Values.autoscaling.cpuUtilization }}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies:
        - {type: Percent, value: 100, periodSeconds: 60}
    # A pod that goes takes warm models and caches with it: slowly, and one after the other.
    scaleDown:
      stabilizationWindowSeconds: 600
      policies:
        - {type: Pods, value: 1, periodSeconds: 120}
{{- end -}}
{{- end -}}

{{- define "verdict.configMap" -}}
{{- $service := include "verdict.service" . | fromYaml -}}
{{- with $service.files -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "verdict.metadata" $ | nindent 2 }}
data:
  {{- range $name, $content := . }}
  {{ $name }}: |
    {{- $content | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* The secrets of this release alone; those that several share are made by charts/foundation. */}}
{{- define "verdict.externalSecret" -}}
{{- if and .Values.externalSecret.enabled .Values.externalSecret.data -}}
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata:
  name: {{ required "externalSecret.name says which Secret to make" .Values.externalSecret.name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "verdict.labels" . | nindent 4 }}
spec:
  refreshInterval: {{ .Values.externalSecret.refreshInterval }}
  secretStoreRef:
    kind: {{ .Values.externalSecret.store.kind }}
    name: {{ .Values.externalSecret.store.name }}
  target:
    name: {{ .Values.externalSecret.name }}
    creationPolicy: Owner
    deletionPolicy: Retain
    template:
      engineVersion: v2
      data:
        {{- range $key, $template := .Values.externalSecret.data }}
        {{ $key }}: {{ $template | quote }}
        {{- end }}
  dataFrom:
    {{- range .Values.externalSecret.from }}
    - extract:
        key: {{ . }}
    {{- end }}
{{- end -}}
{{- end -}}
