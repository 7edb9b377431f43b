{{/* One end of a rule: {namespace, podLabels} inside the cluster, or {cidr, except} outside. */}}
{{- define "verdict.peer" -}}
{{- if .cidr -}}
- ipBlock:
    cidr: {{ .cidr }}
    {{- with .except }}
    except: {{ . | toJson }}
    {{- end }}
{{- else -}}
- podSelector:
    matchLabels:
      {{- toYaml (.podLabels | default dict) | nindent 6 }}
  {{- with .namespace }}
  namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "verdict.networkPolicy" -}}
{{- if .Values.networkPolicy.enabled -}}
{{- $service := include "verdict.service" . | fromYaml -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "verdict.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "verdict.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    {{- range .Values.networkPolicy.callers }}
    # {{ .name }}
    - from:
        {{- include "verdict.peer" . | nindent 8 }}
      ports:
        {{- range .ports | default (list "grpc") }}
        - {protocol: TCP, port: {{ . }}}
        {{- end }}
    {{- end }}
    # the scraper
    - from:
        {{- include "verdict.peer" .Values.networkPolicy.scraper | nindent 8 }}
      ports:
        - {protocol: TCP, port: admin}
  egress:
    # names
    - to:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: kube-system
          podSelector:
            matchLabels:
              k8s-app: kube-dns
      ports:
        - {protocol: UDP, port: 53}
        - {protocol: TCP, port: 53}
    {{- if .Values.telemetry.otlpEndpoint }}
    # the collector
    - to:
        {{- include "verdict.peer" .Values.networkPolicy.collector | nindent 8 }}
      ports:
        - {protocol: TCP, port: 4317}
    {{- end }}
    {{- if .Values.aws.podIdentity }}
    # the Pod Identity agent of the node
    - to:
        - ipBlock:
            cidr: 169.254.170.23/32
      ports:
        - {protocol: TCP, port: 80}
    {{- end }}
    {{- if .Values.kafka.bootstrapServers }}
    # Kafka
    - to:
        {{- range .Values.kafka.cidrs | default (list "0.0.0.0/0") }}
        - ipBlock:
            cidr: {{ . }}
        {{- end }}
      ports:
        {{- $ports := dict }}
        {{- range splitList "," .Values.kafka.bootstrapServers }}{{ $_ := set $ports (splitList ":" . | last) "" }}{{ end }}
        {{- range $port, $_ := $ports }}
        - {protocol: TCP, port: {{ $port }}}
        {{- end }}
    {{- end }}
    {{- range concat ($service.egress | default list) .Values.networkPolicy.extraEgress }}
    # {{ .name }}
    - to:
        {{- range .to }}
        {{- include "verdict.peer" . | nindent 8 }}
        {{- end }}
      ports:
        {{- range .ports }}
        - {protocol: TCP, port: {{ . }}}
        {{- end }}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* Everything outside the cluster and the private networks: what AWS's regional endpoints and receivers of webhooks are. */}}
{{- define "verdict.publicInternet" -}}
cidr: 0.0.0.0/0
except: [10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16]
{{- end -}}

{{/* `cidrs` as peers; none given is every address. */}}
{{- define "verdict.cidrs" -}}
{{- range . | default (list "0.0.0.0/0") }}
- cidr: {{ . }}
{{- end }}
{{- end -}}
