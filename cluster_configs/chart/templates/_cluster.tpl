{{/* The cluster of RayCluster, RayJob and RayService, with the same pods and pools. */}}

{{- define "mode-ray.labels" -}}
app.kubernetes.io/name: mode-ray
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "mode-ray.metadata" -}}
{{/* Arguments: root, name. A Kueue queue admits the object as a whole. */}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "mode-ray.labels" .root | nindent 2 }}
  {{- with .root.Values.queueName }}
  kueue.x-k8s.io/queue-name: {{ . }}
annotations:
  # Kueue admits clusters that grow and shrink only with this.
  kueue.x-k8s.io/elastic-job: "true"
  {{- end }}
{{- end }}

{{- define "mode-ray.pod" -}}
{{/* Arguments: root, size, component (cluster, job or service), kind (head or worker), pool. */}}
{{- $values := .root.Values -}}
{{- $head := eq .kind "head" -}}
{{- $serving := eq .component "service" -}}
{{- $memory := .size.memoryGi | int -}}
{{- if and $head (not $memory) -}}
{{- $memory = add 10 (div (add (mul 3 ($values.concurrentRuns | int)) 3) 4) -}}
{{- end -}}
metadata:
  labels:
    {{- include "mode-ray.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    mode-ray/pool: {{ .pool }}
    {{- with $values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with $values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ ternary $values.serviceAccounts.head.name $values.serviceAccounts.worker.name $head }}
  {{- if not $head }}
  # Workers need no access to the Kubernetes API. The clouds' identities do not use this token.
  automountServiceAccountToken: false
  {{- end }}
  # Autoscaler v2 replaces a dead node; it never restarts Ray within its pod.
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ add $values.drainSeconds 10 }}
  securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .size.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .size.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .size.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-{{ .kind }}
      image: {{ ternary $values.image.gpu $values.image.cpu (gt (int (.size.gpus | default 0)) 0) | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      {{- with $values.environmentSecret }}
      envFrom: [{secretRef: {name: {{ . }}}}]
      {{- end }}
      {{- $env := $values.extraEnv }}
      {{- if $head }}
      {{- range $name, $value := dict "RAY_PROMETHEUS_HOST" $values.monitoring.prometheusHost "RAY_GRAFANA_HOST" $values.monitoring.grafanaHost "RAY_GRAFANA_IFRAME_HOST" $values.monitoring.grafanaIframeHost }}
      {{- if $value }}{{- $env = append $env (dict "name" $name "value" $value) }}{{- end }}
      {{- end }}
      {{- end }}
      {{- with $env }}
      env: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if not $head }}
      # A stopped pod counts as preempted: training writes a checkpoint, and the loss is no failure.
      lifecycle:
        preStop: {exec: {command: [python, -m, mode_ray.deploy.spot_watcher, --drain-now, "--seconds={{ $values.drainSeconds }}"]}}
      {{- end }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        # The port of the autoscaler, which runs in a second container of this pod.
        - {name: as-metrics, containerPort: 44217}
        {{- end }}
        {{- if $serving }}
        - {name: serve, containerPort: 8000}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      # These paths need no token. The thresholds are KubeRay's own: a busy head has ten minutes.
      {{- if $head }}
      readinessProbe: {httpGet: {path: /api/gcs_healthz, port: 8265}, initialDelaySeconds: 10, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 10}
      livenessProbe: {httpGet: {path: /api/gcs_healthz, port: 8265}, initialDelaySeconds: 30, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 120}
      {{- else }}
      readinessProbe: {httpGet: {path: {{ ternary "/-/healthz" "/api/local_raylet_healthz" $serving }}, port: {{ ternary 8000 52365 $serving }}}, initialDelaySeconds: 10, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: {{ ternary 1 10 $serving }}}
      livenessProbe: {httpGet: {path: /api/local_raylet_healthz, port: 52365}, initialDelaySeconds: 30, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 120}
      {{- end }}
      resources:
        requests: {cpu: "{{ .size.cpus }}", memory: {{ $memory }}Gi, ephemeral-storage: {{ .size.ephemeralGi }}Gi}
        limits: {cpu: "{{ .size.cpus }}", memory: {{ $memory }}Gi{{ if .size.gpus }}, nvidia.com/gpu: "{{ .size.gpus }}"{{ end }}}
      volumeMounts:
        - {name: shared-memory, mountPath: /dev/shm}
        - {name: ray, mountPath: /tmp/ray}
    {{- if $values.logs.enabled }}
    - name: logs
      image: {{ $values.logs.image | quote }}
      args: [-i, tail, -p, "path=/tmp/ray/session_*/logs/*", -p, path_key=file, -p, refresh_interval=10, -o, stdout, -p, format=json_lines]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
      resources:
        requests: {cpu: 50m, memory: 64Mi}
        limits: {cpu: 200m, memory: 128Mi}
      volumeMounts:
        - {name: ray, mountPath: /tmp/ray, readOnly: true}
    {{- end }}
  volumes:
    # For Ray's objects; the default of a pod is 64 MiB.
    - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .size.sharedMemoryGi }}Gi}}
    - {name: ray, emptyDir: {}}
{{- end }}

{{- define "mode-ray.cluster" -}}
{{/* Arguments: root, component. */}}
{{- $values := .root.Values -}}
rayVersion: {{ $values.rayVersion | quote }}
authOptions: {mode: token, secretName: {{ $values.tokenSecret }}}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  upscalingMode: Default
  idleTimeoutSeconds: {{ $values.idleSeconds }}
  env:
    # Ray's own default is an hour.
    - {name: RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S, value: "{{ $values.spotTimeoutSeconds }}"}
  securityContext: {runAsNonRoot: true, runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
  resources:
    requests: {cpu: 500m, memory: 1Gi}
    limits: {cpu: "1", memory: 1Gi}
{{- if and (eq .component "service") $values.service.redis.address }}
gcsFaultToleranceOptions:
  redisAddress: {{ $values.service.redis.address | quote }}
  {{- with $values.service.redis.passwordSecret }}
  redisPassword: {valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $values.service.redis.passwordKey }}}}}
  {{- end }}
{{- end }}
headGroupSpec:
  # The head runs no work: drivers and launchers need no CPU.
  rayStartParams: {num-cpus: "0", num-gpus: "0", dashboard-host: 0.0.0.0}
  labels: {mode-ray/pool: head, ray.io/market-type: on-demand}
  template: {{- include "mode-ray.pod" (dict "root" .root "size" $values.head "component" .component "kind" "head" "pool" "head") | nindent 4 }}
workerGroupSpecs:
{{- range $name, $pool := $values.pools }}
  {{- if $pool }}
  {{- $floor := 0 }}
  {{- if eq $.component "service" }}{{ $floor = int (index $values.service.floor $name | default 0) }}{{ end }}
  {{- $fewest := max (int $pool.min) $floor }}
  {{- if gt $fewest (int $pool.max) }}{{ fail (printf "pools.%s: min and service.floor must be at most max=%d" $name (int $pool.max)) }}{{ end }}
  - groupName: {{ $name }}
    replicas: {{ $fewest }}
    minReplicas: {{ $fewest }}
    maxReplicas: {{ $pool.max }}
    priority: {{ $pool.priority }}
    labels: {mode-ray/pool: {{ $pool.pool }}, ray.io/market-type: {{ $pool.market }}}
    rayStartParams: {}
    template: {{- include "mode-ray.pod" (dict "root" $.root "size" $pool "component" $.component "kind" "worker" "pool" $pool.pool) | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}
