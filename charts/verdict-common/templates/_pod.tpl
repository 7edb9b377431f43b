{{- define "verdict.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "verdict.volumeMounts" -}}
{{- $service := include "verdict.service" . | fromYaml -}}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- if $service.files }}
- name: files
  mountPath: /etc/{{ .Chart.Name }}
  readOnly: true
{{- end }}
{{- if $service.caConfigMap }}
- name: database-ca
  mountPath: /etc/database-ca
  readOnly: true
{{- end }}
{{- end -}}

{{/* The settings of the server and of telemetry, which are the same everywhere, then the service's own, then those of `settings`. */}}
{{- define "verdict.env" -}}
{{- $service := include "verdict.service" . | fromYaml -}}
{{- $env := dict
    "LOG_FORMAT" "json"
    "RUST_LOG" .Values.log.filter
    "SERVER_DRAIN_DELAY" "0s"
    "SERVER_DRAIN_GRACE" (printf "%ds" (int .Values.drain.graceSeconds))
    "SERVER_MAX_CONNECTION_AGE" .Values.server.maxConnectionAge
    "SERVER_MAX_IN_FLIGHT" (.Values.server.maxInFlight | int64 | toString)
    "SERVER_MAX_MESSAGE_BYTES" (.Values.server.maxMessageBytes | int64 | toString)
    "SERVER_REQUEST_TIMEOUT" .Values.server.requestTimeout -}}
{{- with .Values.telemetry.otlpEndpoint }}{{ $_ := set $env "OTEL_EXPORTER_OTLP_ENDPOINT" . }}{{ end -}}
{{- with .Values.aws.region }}{{ $_ := set $env "AWS_REGION" . }}{{ end -}}
{{- with .Values.kafka }}
{{- if .bootstrapServers }}
{{- $_ := set $env "KAFKA_BOOTSTRAP_SERVERS" .bootstrapServers }}
{{- $_ := set $env "KAFKA_ENVIRONMENT" .environment }}
{{- $_ := set $env "KAFKA_SECURITY_PROTOCOL" .protocol }}
{{- $_ := set $env "KAFKA_CREATE_TOPICS" (toString .createTopics) }}
{{- with .replication }}{{ $_ := set $env "KAFKA_TOPIC_REPLICATION" (toString .) }}{{ end }}
{{- if hasPrefix "sasl" .protocol }}{{ $_ := set $env "KAFKA_SASL_MECHANISM" .mechanism }}{{ end }}
{{- end }}
{{- end -}}
{{- range $name, $value := $service.settings }}{{ $_ := set $env $name (toString $value) }}{{ end -}}
{{- /* YAML's numbers are floats here, and a million of them would be 1e+06. */ -}}
{{- range $name, $value := .Values.settings }}{{ $_ := set $env $name (kindIs "float64" $value | ternary (int64 $value) $value | toString) }}{{ end -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .Release.Namespace }},k8s.pod.name=$(POD_NAME)
{{- range $name, $value := $env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- if include "verdict.hasKafkaPassword" . }}
{{- range $name, $key := dict "KAFKA_SASL_USERNAME" "username" "KAFKA_SASL_PASSWORD" "password" }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.kafka.secretName }}
      key: {{ $key }}
{{- end }}
{{- end }}
{{- range $name, $from := $service.secrets }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $from.secret }}
      key: {{ $from.key }}
      {{- if $from.optional }}
      optional: true
      {{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.hasKafkaPassword" -}}
{{- with .Values.kafka -}}
{{- if and .bootstrapServers (hasPrefix "sasl" .protocol) (ne .mechanism "aws-msk-iam") -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "verdict.deployment" -}}
{{- include "verdict.check" . -}}
{{- $service := include "verdict.service" . | fromYaml -}}
{{- if $service.Error }}{{ fail (printf "%s.service is not YAML: %s" .Chart.Name $service.Error) }}{{ end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
spec:
  {{- if not .Values.autoscaling.enabled }}
  replicas: {{ .Values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  strategy:
    {{- if include "verdict.isSingle" . }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
    {{- end }}
  selector:
    matchLabels:
      {{- include "verdict.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "verdict.labels" . | nindent 8 }}
        {{- with .Values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: {{ $service.adminPort | quote }}
        prometheus.io/path: /metrics
        {{- if $service.files }}
        verdict/files: {{ $service.files | toJson | sha256sum }}
        {{- end }}
        {{- with .Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "verdict.serviceAccountName" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add .Values.drain.delaySeconds .Values.drain.graceSeconds 10 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with .Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with .Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
        - topologyKey: {{ . }}
          maxSkew: 1
          whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
          matchLabelKeys: [pod-template-hash]
          labelSelector:
            matchLabels:
              {{- include "verdict.selectorLabels" $ | nindent 14 }}
        {{- end }}
      {{- with $service.init }}
      initContainers:
        {{- range $name, $arguments := . }}
        - name: {{ $name }}
          image: {{ include "verdict.image" $ }}
          imagePullPolicy: {{ $.Values.image.pullPolicy }}
          args: {{ $arguments | toJson }}
          securityContext:
            {{- include "verdict.containerSecurity" $ | nindent 12 }}
          env:
            {{- include "verdict.env" $ | nindent 12 }}
          resources:
            {{- toYaml $.Values.resources | nindent 12 }}
          volumeMounts:
            {{- include "verdict.volumeMounts" $ | nindent 12 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .Chart.Name }}
          image: {{ include "verdict.image" . }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          args: [serve]
          securityContext:
            {{- include "verdict.containerSecurity" . | nindent 12 }}
          env:
            {{- include "verdict.env" . | nindent 12 }}
          ports:
            - name: grpc
              containerPort: {{ $service.grpcPort }}
            - name: admin
              containerPort: {{ $service.adminPort }}
            {{- range $name, $port := $service.ports }}
            - name: {{ $name }}
              containerPort: {{ $port }}
            {{- end }}
          # Not ready for as long as it fetches and warms its models; only then may the others judge it.
          startupProbe:
            grpc:
              port: {{ $service.grpcPort }}
              service: {{ $service.health }}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: {{ div .Values.startupSeconds 5 }}
          readinessProbe:
            grpc:
              port: {{ $service.grpcPort }}
              service: {{ $service.health }}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 2
          # The process alone: a database that is away must not restart it.
          livenessProbe:
            httpGet:
              path: /livez
              port: admin
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          # Endpoints go away while this sleeps; SIGTERM, and with it the drain, comes after.
          lifecycle:
            preStop:
              sleep:
                seconds: {{ .Values.drain.delaySeconds }}
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
          volumeMounts:
            {{- include "verdict.volumeMounts" . | nindent 12 }}
      volumes:
        - name: data
          {{- if include "verdict.isSingle" . }}
          persistentVolumeClaim:
            claimName: {{ .Values.persistence.existingClaim | default (include "verdict.fullname" .) }}
          {{- else }}
          emptyDir:
            sizeLimit: {{ .Values.persistence.size }}
          {{- end }}
        - name: tmp
          emptyDir:
            sizeLimit: 1Gi
        {{- if $service.files }}
        - name: files
          configMap:
            name: {{ include "verdict.fullname" . }}
        {{- end }}
        {{- with $service.caConfigMap }}
        - name: database-ca
          configMap:
            name: {{ . }}
            items:
              - {key: ca.pem, path: ca.pem}
        {{- end }}
{{- end -}}
